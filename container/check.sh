#!/usr/bin/env bash
# Builds images with buildah and starts them: what `docker build` and `docker run` would do, without a
# daemon. From `cpu` the demo's model is served; `gpu-rtx`, which gets no GPU here, has to say so. Needs
# root, buildah and debootstrap.
#
#   container/check.sh            both targets, cpu and gpu-rtx
#   container/check.sh cpu        one of them
#   CPU_BASE=debian:bookworm-slim container/check.sh    else a base image is made by debootstrap
#
# BUILD_FLAGS are passed to buildah: --volume /wheels:/wheels:ro --env PIP_FIND_LINKS=/wheels and the like.
# So are BUILD_FLAGS_CPU and BUILD_FLAGS_GPU_RTX, for one target alone.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-build/container}
mkdir -p "$work"
work=$(realpath "$work")
store=(--storage-driver vfs --root "$work/storage" --runroot "$work/run")
buildah() { command buildah "${store[@]}" "$@"; }
step() { printf '\n== %s\n' "$*"; }
port() { python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"; }

base() {
    [ -z "${CPU_BASE:-}" ] || return 0
    CPU_BASE=localhost/debian:bookworm
    step "a Debian base image"
    [ -d "$work/debian" ] || debootstrap --variant=minbase bookworm "$work/debian" > "$work/debootstrap.log"
    local container
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$work/debian" / > /dev/null
    buildah commit --quiet --rm "$container" "$CPU_BASE" > /dev/null
}

build() { # the target
    local flags="BUILD_FLAGS_${1^^}"
    flags=${flags//-/_}
    step "building the $1 target"
    # shellcheck disable=SC2086
    buildah build --isolation chroot --format docker --layers=false --target "$1" \
        --build-arg CPU_BASE="$CPU_BASE" ${BUILD_FLAGS:-} ${!flags:-} --tag "localhost/teran:$1" .
    step "the $1 image has $(buildah images --format '{{.Size}}' "localhost/teran:$1")"
}

serve() { # the target
    step "serving the demo's model from it"
    container=$(buildah from "localhost/teran:$1")
    local grpc metrics health log="$work/server.log"
    grpc=$(port) metrics=$(port) health=$(port)
    # In a session of its own, so that all of it can be stopped and nothing else.
    setsid buildah "${store[@]}" run --isolation chroot --volume "$PWD/examples/scenes/model:/bundle:ro" \
        --env TERAN_HOST=127.0.0.1 --env TERAN_PRECISION=fp32 --env TERAN_GRPC_PORT="$grpc" \
        --env TERAN_METRICS_PORT="$metrics" --env TERAN_HEALTH_PORT="$health" \
        "$container" -- teran-entrypoint > "$log" 2>&1 &
    server=$!
    trap stop EXIT
    for _ in $(seq 240); do
        kill -0 "$server" 2> /dev/null || { cat "$log"; echo "the server ended"; exit 1; }
        python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$health/health/ready')" 2> /dev/null && break
        sleep 1
    done
    step "the client against it"
    "${PYTHON:-.venv/bin/python}" -m container.smoke "127.0.0.1:$grpc"
    stop
    trap - EXIT
}

stop() {
    kill -TERM -- "-$server" 2> /dev/null || true
    wait "$server" 2> /dev/null || true
    buildah rm "$container" > /dev/null
}

refuse() { # the target
    step "starting it without a GPU"
    local said status=0
    container=$(buildah from "localhost/teran:$1")
    # Without what buildah itself says of a command that failed.
    said=$(buildah run --isolation chroot "$container" -- sh -c 'teran-entrypoint 2>&1' 2> /dev/null) || status=$?
    # What the kernel of galleries is compiled with, on a GPU.
    buildah run --isolation chroot "$container" -- sh -c 'gcc --version && python3-config --includes' > /dev/null
    buildah rm "$container" > /dev/null
    echo "$said"
    if [ "$status" -eq 0 ] || [ "$(wc -l <<< "$said")" -ne 1 ] || [[ $said != *"no GPU"* ]]; then
        echo "it should have ended in one sentence about the GPU; its status was $status"
        exit 1
    fi
}

[ $# -gt 0 ] || set -- cpu gpu-rtx
base
for target in "$@"; do
    build "$target"
    if [ "$target" = gpu-rtx ]; then refuse "$target"; else serve "$target"; fi
done
step "passed"
