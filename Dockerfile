# The daemon's image: control plane, inference plane, rounds. docs/how-to/deploy.md says how to run it.
#
#   docker build -t mfmd:cpu --build-arg TORCH_INDEX_URL=<index with CPU builds of torch> .
#   docker build -t mfmd:cuda --target cuda --label org.opencontainers.image.revision="$(git rev-parse HEAD)" .
#
# Packages come from deploy/lock/{cpu,cuda}.txt; pip refuses a file whose hash is not there. The image holds no
# configuration, no weights, no secrets and no compiler, so `serving.compile` and `round.compile` stay off in it.

FROM python:3.11-slim AS empty
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# mfmd lies in a folder of its own, and so in a small layer of its own
RUN python -m venv /opt/venv \
 && echo /opt/mfmd/lib/python3.11/site-packages > /opt/venv/lib/python3.11/site-packages/mfmd.pth
WORKDIR /src

FROM empty AS packages-cpu
ARG TORCH_INDEX_URL=""
COPY deploy/lock/cpu.txt ./
RUN /opt/venv/bin/pip install --require-hashes ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -r cpu.txt

FROM empty AS packages-cuda
COPY deploy/lock/cuda.txt ./
RUN /opt/venv/bin/pip install --require-hashes -r cuda.txt

FROM packages-cpu AS built
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY storage storage
COPY adapters adapters
COPY daemon daemon
RUN /opt/venv/bin/pip install --no-index --no-deps --no-build-isolation --prefix /opt/mfmd .

FROM python:3.11-slim AS runtime
# 10001: no user of the host has this number; it owns only the two volumes
RUN groupadd --gid 10001 mfmd \
 && useradd --uid 10001 --gid mfmd --home-dir /state --no-create-home --shell /usr/sbin/nologin mfmd \
 && install -d -o mfmd -g mfmd -m 0750 /state \
 && install -d -o mfmd -g mfmd -m 0755 /drop \
 && install -d -m 0755 /etc/mfmd
# Inside the image the folders and the served address are fixed, whatever the mounted configuration says.
# The control plane stays on 127.0.0.1; to reach it from outside set MFMD_CONTROL__HOST=0.0.0.0 and
# MFMD_CONTROL__TOKEN_FILE to a mounted secret. The inference plane answers whoever reaches its published port; with
# MFMD_SERVING__TOKEN_FILE it wants a token.
ENV PATH=/opt/mfmd/bin:/opt/venv/bin:$PATH \
    HOME=/state \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    MALLOC_ARENA_MAX=2 \
    MFMD_CONFIG=/etc/mfmd/mfmd.yaml \
    MFMD_STATE=/state \
    MFMD_WATCH__FOLDER=/drop \
    MFMD_SERVING__HOST=0.0.0.0 \
    MFMD_SERVING__ADVANCED__PUBLIC=true
# A number, because Kubernetes cannot see that a name is not root's
USER 10001:10001
WORKDIR /state
VOLUME ["/state", "/drop"]
EXPOSE 8008 8009
STOPSIGNAL SIGTERM
# For a container that only runs `mfmd serve`, ask GET /healthz on its port instead (--health-cmd).
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["mfmd", "status", "--check"]
# No tini: as the first process mfmd itself reaps orphans and passes signals on (daemon/cli/process.py).
ENTRYPOINT ["mfmd"]
CMD ["run"]
LABEL org.opencontainers.image.title="mfmd" \
      org.opencontainers.image.description="Keeps a semantic-segmentation model good while the world changes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

FROM runtime AS cuda
# what NVIDIA's container runtime gives
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/venv /opt/venv
COPY --from=built /opt/mfmd /opt/mfmd

FROM runtime AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=built /opt/mfmd /opt/mfmd
