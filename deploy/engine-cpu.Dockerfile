# vLLM for CPUs with our plugin. Build from the repository's root:
#   docker build -f deploy/engine-cpu.Dockerfile -t trillion-serve-engine-cpu .
FROM python:3.11.9-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /cache
WORKDIR /app
COPY requirements/cpu.txt requirements/
COPY scripts scripts
COPY pyproject.toml README.md LICENSE ./
COPY trillion_serve trillion_serve
COPY model model
COPY convert convert
COPY training training
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 scripts/setup-cpu.sh /opt/venv python3.11
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 10001:10001
EXPOSE 8001
