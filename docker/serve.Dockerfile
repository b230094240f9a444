# Loads engines and nothing else: no ONNX, no framework, no command line, no compiler.
#   docker build -f docker/serve.Dockerfile -t trtbuild-serve .
# A service derives from it and calls trtbuild.load(...).
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS environment

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The versions of Ubuntu's packages are those of the pinned base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/trtbuild
ENV PATH=/opt/trtbuild/.venv/bin:/usr/local/cuda/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# serve.txt only names most of its packages; their hashes are in the other locks.
# PyCUDA is compiled here, which is why this stage has nvcc and a compiler.
COPY requirements requirements
RUN python3 -m venv .venv \
    && awk -f requirements/hashed.awk requirements/serve.txt requirements/serve.txt \
        requirements/demo.txt requirements/gpu.txt requirements/dev.txt \
        > /tmp/serve.txt \
    && pip install --no-deps --require-hashes --requirement=/tmp/serve.txt

# The wheel is made by tools of another environment, so that they stay out of this one, and
# --no-deps leaves out what only building needs: onnx, onnx-ir, onnxscript, Polygraphy, Typer, Rich.
COPY LICENSE README.md pyproject.toml ./
COPY trtbuild trtbuild
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-deps --require-hashes -r requirements/build.txt \
    && /opt/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheel . \
    && pip install --no-deps /opt/wheel/*.whl

FROM nvidia/cuda:13.0.1-base-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The versions of Ubuntu's packages are those of the pinned base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 trtbuild \
    && install --directory --owner trtbuild /store

COPY --from=environment /opt/trtbuild/.venv /opt/trtbuild/.venv

USER 10001
WORKDIR /opt/trtbuild

ENV PATH=/opt/trtbuild/.venv/bin:$PATH \
    TRTBUILD_STORE=/store

RUN python -c "import trtbuild.runtime.load, trtbuild.backends.ort_session, cuda.bindings.driver"

CMD ["python"]
