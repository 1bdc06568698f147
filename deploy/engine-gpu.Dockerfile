# vLLM for GPUs with our plugin. Build from the repository's root:
#   docker build -f deploy/engine-gpu.Dockerfile -t trillion-serve-engine-gpu .
FROM vllm/vllm-openai:v0.32.0
WORKDIR /app
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY trillion_serve trillion_serve
COPY model model
COPY convert convert
COPY training training
# The image has all that the plugin needs, in versions that vLLM was built with.
RUN python3 -m pip install --no-cache-dir --no-deps -c requirements/cpu.txt hatchling pathspec pluggy trove-classifiers \
    && python3 -m pip install --no-cache-dir --no-deps --no-build-isolation . \
    && install -d -o 10001 -g 10001 /cache
ENV PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 10001:10001
EXPOSE 8001
ENTRYPOINT []
