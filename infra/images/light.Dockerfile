# The image without engines: Prefect server, workers of the CPU pools, and the worker that starts Kubernetes Jobs.
# docker build -f infra/images/light.Dockerfile -t distilflow-light:0.1.0 .     (or `make images`)
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY light.lock infra/build.lock ./
RUN python -m venv /opt/venv && pip install --no-deps --require-hashes --only-binary :all: -r build.lock
# Four of lm-eval's packages have no wheel.
RUN pip install --no-deps --require-hashes --build-constraint build.lock --only-binary :all: --no-binary langdetect,rouge-score,sqlitedict,word2number -r light.lock

FROM packages AS project
COPY pyproject.toml README.md LICENSE ./
COPY flows flows
COPY tasks tasks
COPY infra infra
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM ${PYTHON}
# Debian drops a package's old version when it mends it, so a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/distilflow --create-home distilflow
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DISTILFLOW_HOME=/var/lib/distilflow \
    DO_NOT_TRACK=1
COPY --from=packages /opt/venv /opt/venv
RUN --mount=type=bind,from=project,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
USER 10001:10001
WORKDIR /var/lib/distilflow
# tini reaps what a killed engine leaves; whoever starts the image says what runs (Prefect's worker gives its own command)
ENTRYPOINT ["tini", "--"]
CMD ["prefect", "worker", "start", "--pool", "cpu", "--type", "process", "--with-healthcheck"]
