# The daemon's image: control plane, inference plane, rounds.
#
#   docker build -t mfmd --build-arg TORCH_INDEX_URL=<index with CPU builds of torch> .
#   docker run --rm -v ./mfmd.yaml:/etc/mfmd/mfmd.yaml:ro -v /data/drop:/drop -v mfmd-state:/state -p 8009:8009 mfmd
#
# TORCH_INDEX_URL is a further index to look for torch in. Builds for the CPU carry the local version `+cpu`, which pip
# prefers to a plain one of the same number. Without it pip finds the CUDA build on x86-64: several gigabytes.
# The image holds no configuration, no weights and no secrets.

FROM python:3.11-slim AS build
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/mfmd
WORKDIR /src
COPY constraints.txt ./
# torch on its own first: the largest layer changes least
RUN /opt/mfmd/bin/pip install -c constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY storage storage
COPY adapters adapters
COPY daemon daemon
RUN /opt/mfmd/bin/pip install -c constraints.txt .

FROM python:3.11-slim
# 10001: no user of the host has this number; owns only the two volumes
RUN groupadd --gid 10001 mfmd \
 && useradd --uid 10001 --gid mfmd --home-dir /state --no-create-home --shell /usr/sbin/nologin mfmd \
 && install -d -o mfmd -g mfmd -m 0750 /state \
 && install -d -o mfmd -g mfmd -m 0755 /drop \
 && install -d -m 0755 /etc/mfmd
COPY --from=build /opt/mfmd /opt/mfmd
# Inside the image the folders and the served address are fixed, whatever the mounted configuration says.
# The control plane stays on 127.0.0.1; to reach it from outside set MFMD_CONTROL__HOST=0.0.0.0 and
# MFMD_CONTROL__TOKEN_FILE to a mounted secret. The inference plane answers whoever reaches its published port; with
# MFMD_SERVING__TOKEN_FILE it wants a token.
ENV PATH=/opt/mfmd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    MALLOC_ARENA_MAX=2 \
    MFMD_CONFIG=/etc/mfmd/mfmd.yaml \
    MFMD_STATE=/state \
    MFMD_WATCH__FOLDER=/drop \
    MFMD_SERVING__HOST=0.0.0.0 \
    MFMD_SERVING__ADVANCED__PUBLIC=true
USER mfmd
WORKDIR /state
VOLUME ["/state", "/drop"]
EXPOSE 8008 8009
STOPSIGNAL SIGTERM
# For a container that only runs `mfmd serve`, ask GET /healthz on its port instead (--health-cmd).
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["mfmd", "status", "--check"]
ENTRYPOINT ["mfmd"]
CMD ["run"]
