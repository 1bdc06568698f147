# The gateway alone: no torch, no engine. Build from the repository's root:
#   docker build -f deploy/gateway.Dockerfile -t trillion-serve-gateway .
FROM python:3.11.9-slim-bookworm AS build
WORKDIR /app
COPY requirements requirements
RUN pip install --no-cache-dir --no-deps -c requirements/cpu.txt hatchling packaging pathspec pluggy trove-classifiers \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps -r requirements/gateway.txt
COPY pyproject.toml README.md LICENSE ./
COPY trillion_serve trillion_serve
COPY model model
COPY convert convert
COPY training training
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.11.9-slim-bookworm
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["trillion-serve"]
