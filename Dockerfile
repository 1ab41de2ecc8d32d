# syntax=docker/dockerfile:1
# PixArt Studio with CUDA. docs/hosting.md says how to build and run it.

# torch brings CUDA's libraries itself; of the image only what lets a container see the card is needed.
ARG CUDA=13.1.1

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04 AS system
# libgomp1: bitsandbytes on the processor.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 libgomp1 \
    && rm -rf /var/lib/apt/lists/*

FROM system AS packages
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt requirements.lock requirements-torch.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/studio \
    && /opt/studio/bin/pip install --require-hashes --no-deps --only-binary=:all: \
        -r /tmp/requirements.lock
# For older drivers another build of the same torch, e.g. https://download.pytorch.org/whl/cu126.
# No lock has the files of such an index: there the version is what is held.
ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -z "$TORCH_INDEX" ]; then \
        /opt/studio/bin/pip install --require-hashes --no-deps --only-binary=:all: \
            -r /tmp/requirements-torch.lock; \
    else \
        /opt/studio/bin/pip install --only-binary=:all: --index-url "$TORCH_INDEX" \
            "$(grep -o '^torch==[^ ]*' /tmp/requirements.txt)"; \
    fi

FROM system
# The image's own user of this number gets our name; Spaces run containers as 1000, too.
RUN usermod --login studio --home /home/studio --move-home ubuntu \
    && groupmod --new-name studio ubuntu \
    && install -d -o studio -g studio /workspace
COPY --from=packages /opt/studio /opt/studio
WORKDIR /studio
# What changes seldom comes first.
COPY assets assets
COPY presets presets
COPY LICENSE launch.py requirements.txt requirements.lock requirements-torch.lock ./
COPY training training
COPY lora_manager lora_manager
COPY pipelines pipelines
COPY app app
ENV PATH=/opt/studio/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIXART_STUDIO_WORKSPACE=/workspace
USER studio
VOLUME /workspace
EXPOSE 7860
# A studio that asks for its token is alive, too.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7860, timeout=8); c.request('GET', '/studio/alive'); raise SystemExit(c.getresponse().status not in (200, 401))"]
ENTRYPOINT ["python", "launch.py"]
CMD ["--host", "0.0.0.0", "--port", "7860", "--no-browser"]
