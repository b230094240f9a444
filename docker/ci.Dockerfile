# Runs `make test` as CI does, without a GPU:
#   docker build -f docker/ci.Dockerfile -t trtbuild-ci . && docker run --rm trtbuild-ci
FROM python:3.11.14-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The versions of Debian's packages are those of the pinned base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 trtbuild \
    && install --directory --owner trtbuild /opt/trtbuild

USER 10001
WORKDIR /opt/trtbuild

COPY --chown=10001 . .
RUN make .venv/.dev

CMD ["make", "test"]
