# The service on a CPU. Build from the root of the project:
#   docker build -f docker/service.Dockerfile -t m3tr-service .
# PIP_FLAGS takes further options of pip, for example an index with CPU-only builds of torch (a far smaller image).
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_FLAGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/m3tr
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY index_builder index_builder
COPY model model
COPY service service
RUN /opt/m3tr/bin/pip install ${PIP_FLAGS} -c constraints.txt ".[cpu]"
# Kernels compiled here are found by numba in an image for the same kind of processor; elsewhere a start compiles them.
RUN cd / && /opt/m3tr/bin/python -m model.warmup

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home --home-dir /var/lib/m3tr m3tr \
    && install --directory --owner=m3tr --group=m3tr /bundles
COPY --from=build /opt/m3tr /opt/m3tr
ENV PATH=/opt/m3tr/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    M3TR_BUNDLE=/bundles/current \
    M3TR_DATA_DIR=/var/lib/m3tr \
    M3TR_HOST=0.0.0.0 \
    M3TR_PORT=8000
USER m3tr
WORKDIR /var/lib/m3tr
VOLUME /var/lib/m3tr
EXPOSE 8000
# The service refuses to listen beyond loopback without API keys: pass M3TR_API_KEYS_FILE or M3TR_API_KEYS.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['M3TR_PORT'] + '/health/live', timeout=3)"]
CMD ["m3tr-serve"]
