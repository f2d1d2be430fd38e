# The service, and the builder, on an NVIDIA GPU. Build from the root of the project:
#   docker build -f docker/service-cuda.Dockerfile -t m3tr-service:cuda .
#   docker run --gpus all ... m3tr-service:cuda
# mamba-ssm comes as source and is compiled here for nine GPU architectures: tens of minutes, and about 4 GB of memory a job.
# With --build-arg GPU_ARCHITECTURE=9.0 it is compiled for that one (nvidia-smi --query-gpu=compute_cap --format=csv): 3 minutes on 16 cores.
# CUDA must be of the major version that torch and onnxruntime-gpu in constraints.txt were built for (13).
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn

FROM ${CUDA_IMAGE}-devel-ubuntu24.04 AS build
ARG PIP_FLAGS=""
ARG MAX_JOBS=4
ARG GPU_ARCHITECTURE=""
ENV DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/m3tr
WORKDIR /src
COPY constraints.txt ./
COPY docker/build_mamba_ssm.py docker/
# Its build imports the installed torch, so that comes first and it is built without isolation.
RUN /opt/m3tr/bin/pip install ${PIP_FLAGS} -c constraints.txt ninja packaging setuptools torch wheel
RUN if [ -n "${GPU_ARCHITECTURE}" ]; \
    then PIP_CONSTRAINT=constraints.txt /opt/m3tr/bin/python docker/build_mamba_ssm.py ${GPU_ARCHITECTURE}; \
    else MAMBA_FORCE_BUILD=TRUE /opt/m3tr/bin/pip install ${PIP_FLAGS} -c constraints.txt --no-build-isolation mamba-ssm; fi
COPY LICENSE README.md pyproject.toml ./
COPY index_builder index_builder
COPY model model
COPY service service
RUN /opt/m3tr/bin/pip install ${PIP_FLAGS} -c constraints.txt ".[gpu]"
# Kernels compiled here are found by numba in an image for the same kind of processor; elsewhere a start compiles them.
RUN cd / && /opt/m3tr/bin/python -m model.warmup

FROM ${CUDA_IMAGE}-runtime-ubuntu24.04
# Triton compiles its kernels on first use: it needs a C compiler and Python's headers at run time.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev python3.12-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --home-dir /var/lib/m3tr m3tr \
    && install --directory --owner=m3tr --group=m3tr /bundles
COPY --from=build /opt/m3tr /opt/m3tr
ENV PATH=/opt/m3tr/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    TRITON_CACHE_DIR=/tmp/triton \
    M3TR_BUNDLE=/bundles/current \
    M3TR_DATA_DIR=/var/lib/m3tr \
    M3TR_HOST=0.0.0.0 \
    M3TR_PORT=8000
USER m3tr
WORKDIR /var/lib/m3tr
VOLUME /var/lib/m3tr
EXPOSE 8000
# The service refuses to listen beyond loopback without API keys: pass M3TR_API_KEYS_FILE or M3TR_API_KEYS.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['M3TR_PORT'] + '/health/live', timeout=3)"]
CMD ["m3tr-serve"]
