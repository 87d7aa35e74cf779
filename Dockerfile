# TERAN Serving. Targets:
#   cpu      Debian, with the Triton server of the nvidia-pytriton wheel; engines for the CPU
#   gpu-rtx  the same with TensorRT-RTX, for GeForce and RTX GPUs: nothing but Debian and PyPI
#   gpu      NVIDIA's Triton image, whose C++ backends serve TensorRT and compiled PyTorch engines
#
#   docker build --target cpu -t teran:cpu .
#   docker run --rm --shm-size 1g -p 127.0.0.1:8001:8001 -e TERAN_INSECURE=true \
#       -v ./bundle:/bundle:ro -v teran:/var/lib/teran teran:cpu
#
# TERAN_INSECURE: without TLS and a write key, as only this host reaches the port (docs/security.md).
# The targets for a GPU also want `docker run --gpus all`.
#
# On x86-64, PyPI's torch brings several GB of CUDA libraries, which gpu-rtx needs and cpu must not have.
# Where pip's own settings (PIP_INDEX_URL, a wheel folder mounted into the build) don't lead to the
# right one, name an index: --build-arg TORCH_INDEX=<that of the PyTorch project's CPU wheels, or
# PyPI's>. The build checks what it got.
ARG CPU_BASE=debian:bookworm-slim
ARG GPU_BASE=nvcr.io/nvidia/tritonserver:26.07-py3

# ---- What the package is made of --------------------------------------------------------------------
FROM scratch AS sources
COPY pyproject.toml hatch_build.py README.md LICENSE constraints.txt /
COPY teran /teran
COPY export /export
COPY client /client
COPY research /research
COPY model_repository /model_repository
COPY backends /backends

# ---- The package in an environment of its own -------------------------------------------------------
FROM ${CPU_BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/teran
WORKDIR /src
COPY constraints.txt ./
ARG TORCH_INDEX=

FROM build AS build-cpu
RUN torch="$(grep '^torch==' constraints.txt)" \
    && /opt/teran/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${torch}" \
    && /opt/teran/bin/python -c "import torch; assert not torch.version.cuda, 'CUDA build of torch: pass --build-arg TORCH_INDEX'"
COPY --from=sources / ./
RUN /opt/teran/bin/pip install --no-cache-dir --constraint constraints.txt '.[server,export]'

FROM build AS build-gpu-rtx
RUN torch="$(grep '^torch==' constraints.txt)" \
    && /opt/teran/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${torch}" \
    && /opt/teran/bin/python -c "import torch; assert torch.version.cuda, 'CPU build of torch: pass --build-arg TORCH_INDEX'"
COPY --from=sources / ./
RUN /opt/teran/bin/pip install --no-cache-dir --constraint constraints.txt '.[server,tensorrt-rtx]'

# ---- What serves from it ----------------------------------------------------------------------------
FROM ${CPU_BASE} AS serve
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libgomp1 libpython3.11 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /var/lib/teran teran
COPY --chmod=755 container/entrypoint.sh /usr/local/bin/teran-entrypoint
ENV PATH=/opt/teran/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TERAN_BUNDLE=/bundle \
    TERAN_GALLERY=/var/lib/teran/gallery \
    TERAN_HOST=0.0.0.0 \
    TERAN_REPOSITORY=/var/lib/teran/repository
USER 10001
WORKDIR /var/lib/teran
VOLUME /var/lib/teran
EXPOSE 8001 8002 8003
STOPSIGNAL SIGTERM
ENTRYPOINT ["teran-entrypoint"]

# ---- CPU --------------------------------------------------------------------------------------------
FROM serve AS cpu
COPY --from=build-cpu /opt/teran /opt/teran
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8003/health/ready')"]

# ---- GPU with TensorRT-RTX: built, and never run on a GPU -------------------------------------------
FROM serve AS gpu-rtx
USER 0
# The kernel that scans galleries is compiled on the GPU that is there, and what starts it with gcc.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001
COPY --from=build-gpu-rtx /opt/teran /opt/teran
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    TERAN_ENGINE=tensorrt-rtx \
    TERAN_GALLERY_DEVICE=cuda
HEALTHCHECK --interval=10s --timeout=5s --start-period=60m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8003/health/ready')"]

# ---- GPU: not built yet for want of NVIDIA's image --------------------------------------------------
FROM ${GPU_BASE} AS gpu
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/teran \
    && useradd --uid 10001 --create-home --home-dir /var/lib/teran teran
COPY --from=sources / ./
RUN /opt/teran/bin/pip install --no-cache-dir '.[server,export,tensorrt]'
COPY --chmod=755 container/entrypoint.sh /usr/local/bin/teran-entrypoint
ENV PATH=/opt/teran/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TERAN_BUNDLE=/bundle \
    TERAN_ENGINE=tensorrt \
    TERAN_GALLERY=/var/lib/teran/gallery \
    TERAN_GALLERY_DEVICE=cuda \
    TERAN_HOST=0.0.0.0 \
    TERAN_REPOSITORY=/var/lib/teran/repository
USER 10001
WORKDIR /var/lib/teran
VOLUME /var/lib/teran
EXPOSE 8001 8002 8003
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8003/health/ready')"]
ENTRYPOINT ["teran-entrypoint"]
