#!/usr/bin/env bash
# Build the CPU image and try it without a registry and without a container engine's daemon:
#
#   sudo deploy/try_image.sh [FOLDER]        # FOLDER keeps base, layers and state (6 GB); a temporary one by default
#
# The base is bootstrapped from Debian packages and takes the name of the Dockerfile's base. The image then runs as its
# own user on a read-only root, with a tmpfs at /tmp, in namespaces of its own: a round, a health check, a plane on a
# read-only state directory. It prints the size of each layer. Needs root, debootstrap, podman, a mirror of Debian
# (DEBIAN_MIRROR) and a package index (PIP_INDEX_URL), and a folder with the CPU build of torch (WHEELS).
set -euo pipefail
cd "$(dirname "$0")/.."
base=localhost/python:3.11-slim
image=localhost/mfmd:cpu
if [[ $# -gt 0 ]]; then work=$(realpath -m "$1"); else work=$(mktemp -d); fi
mkdir -p "$work"
podman=(podman --root "$work/storage" --runroot "$work/run" --storage-driver overlay --cgroup-manager cgroupfs)
say() { printf '\n== %s\n' "$*"; }

make_base() {
    ! "${podman[@]}" image exists "$base" || return 0  # of an earlier run in this folder: its layers are used again
    [[ -d $work/base ]] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm \
        "$work/base" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} > "$work/debootstrap.log"
    ln -sf python3 "$work/base/usr/bin/python"
    tar -C "$work/base" -c . | "${podman[@]}" import -q - "$base"
}

build() {
    local options=(-v /etc/ssl/certs:/etc/ssl/certs:ro -v "$work/pip.conf:/etc/pip.conf:ro")
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$work/pip.conf"
    [[ -z ${PIP_INDEX_URL:-} ]] || echo "index-url = $PIP_INDEX_URL" >> "$work/pip.conf"
    if [[ -n ${WHEELS:-} ]]; then
        echo 'find-links = /wheels' >> "$work/pip.conf"
        options+=(-v "$(realpath "$WHEELS"):/wheels:ro")
    fi
    # the docker format keeps HEALTHCHECK
    "${podman[@]}" build -q --format docker --isolation=chroot --pull=never --network=host --layers "${options[@]}" \
        --label org.opencontainers.image.revision="$(git rev-parse HEAD)" --target cpu -t "$image" .
}

field() { "${podman[@]}" image inspect "$image" --format "{{range $1}}{{println .}}{{end}}" | sed '/^$/d'; }

# container STATE_MODE COMMAND...: as the first process, in namespaces of its own, on a read-only root
container() {
    local mode=$1
    shift
    # shellcheck disable=SC2016  # the inner shell expands them
    unshare --mount --pid --net --uts --ipc --fork --kill-child --propagation private bash -euc '
        root=$1 work=$2 mode=$3 user=$4
        shift 4
        ip link set lo up
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        for node in null zero urandom random; do mount --bind "/dev/$node" "$root/dev/$node"; done
        mount -t tmpfs -o size=256m,mode=1777 tmpfs "$root/tmp"
        mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/dev/shm"
        mount --bind "$work/state" "$root/state"
        mount --bind "$work/drop" "$root/drop"
        mount --bind "$work/source" "$root/srv"
        mount --bind "$work/etc" "$root/etc/mfmd"
        mount -o remount,bind,ro "$root/etc/mfmd"
        mount -o remount,bind,"$mode" "$root/state"
        mount -o remount,bind,ro "$root"
        exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"' \
        container "$root" "$work" "$mode" "$user" env -i "${environment[@]}" "$@"
}

# inside PID COMMAND...: a further command in a running container
inside() {
    local pid=$1
    shift
    nsenter --target "$pid" --mount --pid --net chroot --userspec="$user" "$root" env -i "${environment[@]}" "$@"
}

first_process() {  # of the container in background job $1: the shell's child is unshare, whose child it is
    local pid
    for _ in $(seq 100); do
        pid=$(pgrep -P "$(pgrep -P "$1" || echo 0)" || true)
        [[ -z $pid ]] || { echo "$pid"; return; }
        sleep 0.1
    done
    return 1
}

until_it() {  # until_it SECONDS COMMAND...
    local ends=$((SECONDS + $1))
    shift
    until "$@" > "$work/last" 2>&1; do
        [[ $SECONDS -lt $ends ]] || { cat "$work/last" "$work/container.log"; return 1; }
        sleep 1
    done
}

stop() { kill -TERM "$1"; wait "$2" || { echo "ended with status $?"; tail "$work/container.log"; return 1; }; }

prepare() {
    rm -rf "${work:?}"/{state,drop,source,etc}
    install -d -o 10001 -g 10001 "$work"/{state,drop,source}
    install -d "$work/etc"
    cat > "$work/etc/mfmd.yaml" <<'YAML'
classes: demo
source: {images: /srv/images, labels: /srv/labels}
watch: {stability_seconds: 0.2}
buffer: {height: 72, width: 96, capacity_frames: 64, holdout_fraction: 0.3, reserve_bytes: 0, advanced: {tile: 48}}
network: {name: deeplabv3plus, encoder: resnet_tiny, channels: 32}
pretrain: {steps: 10, batch_size: 2, crop_height: 72, crop_width: 96}
mfm: {ablation: {dim: 32, heads: 4, blocks: 1}}
round: {steps: 4, batch_size: 2, crop_height: 72, crop_width: 96, device: cpu}
schedule: {enabled: false, min_frames: 8}
serving: {device: cpu, threads: 1}
YAML
    container rw python -c '
from pathlib import Path
from daemon.demo.conditions import DAY, DUSK
from daemon.demo.scenes import write_scene
for seed in range(8):
    write_scene(Path("/srv"), DAY, seed, True, 72, 96)
for seed in range(24):
    write_scene(Path("/drop"), DUSK, seed, False, 72, 96)'
    container rw mfmd pretrain > "$work/container.log" 2>&1 || { tail "$work/container.log"; return 1; }
}

trap '[[ -z ${pid:-} ]] || kill -KILL "$pid" 2> /dev/null || true' EXIT  # a container ends with its first process

say "base and image"
make_base
build
root=$("${podman[@]}" image mount "$image")
user=$("${podman[@]}" image inspect "$image" --format '{{.Config.User}}')
mapfile -t environment < <(field .Config.Env)
mapfile -t command < <(field .Config.Entrypoint; field .Config.Cmd)
mapfile -t health < <(field .Config.Healthcheck.Test | tail -n +2)

say "layers"
"${podman[@]}" history --format '{{.Size}}	{{.CreatedBy}}' "$image" | grep -v '^0 B'

say "no compiler; numeric user $user"
for tool in cc gcc g++ clang ld as; do
    ! chroot "$root" sh -c "command -v $tool" || { echo "the image holds $tool"; exit 1; }
done
[[ $user =~ ^[0-9]+:[0-9]+$ ]]

say "a first version"
prepare
container rw sh -c 'id; ! touch /opt/x /etc/x /x' 2>&1

say "the daemon: ${command[*]}"
container rw "${command[@]}" > "$work/container.log" 2>&1 & shell=$!
pid=$(first_process "$shell")
until_it 120 inside "$pid" "${health[@]}"
say "health check: ${health[*]}"
inside "$pid" "${health[@]}"
say "a round"
inside "$pid" mfmd adapt || [[ $? -eq 3 ]]  # 3: no candidate was accepted, after ten steps no wonder
inside "$pid" mfmd status
stop "$pid" "$shell"

say "a plane of its own, on a read-only state directory"
environment+=(TMPDIR=/tmp)
container ro mfmd serve > "$work/container.log" 2>&1 & shell=$!
pid=$(first_process "$shell")
until_it 120 inside "$pid" python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:8009/readyz')"
stop "$pid" "$shell"
say "all of it worked"
