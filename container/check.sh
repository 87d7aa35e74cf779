#!/usr/bin/env bash
# Builds the `cpu` image with buildah and serves the demo's model from it: what `docker build` and
# `docker run` would do, without a daemon. Needs root, buildah and debootstrap.
#
#   container/check.sh            a base image is made by debootstrap where none is named
#   CPU_BASE=debian:bookworm-slim container/check.sh
#
# BUILD_FLAGS are passed to buildah: --volume /wheels:/wheels:ro --env PIP_FIND_LINKS=/wheels and the like.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-build/container}
mkdir -p "$work"
work=$(realpath "$work")
buildah() { command buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }
step() { printf '\n== %s\n' "$*"; }

if [ -z "${CPU_BASE:-}" ]; then
    CPU_BASE=localhost/debian:bookworm
    step "a Debian base image"
    [ -d "$work/debian" ] || debootstrap --variant=minbase bookworm "$work/debian" > "$work/debootstrap.log"
    base=$(buildah from scratch)
    buildah copy --quiet "$base" "$work/debian" / > /dev/null
    buildah commit --quiet --rm "$base" "$CPU_BASE" > /dev/null
fi

step "building the cpu target"
# shellcheck disable=SC2086
buildah build --isolation chroot --format docker --layers=false --target cpu \
    --build-arg CPU_BASE="$CPU_BASE" ${BUILD_FLAGS:-} --tag localhost/teran:cpu .
size=$(buildah images --format '{{.Size}}' localhost/teran:cpu)

step "serving the demo's model from it"
container=$(buildah from localhost/teran:cpu)
port() { python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"; }
grpc=$(port) metrics=$(port) health=$(port)
log="$work/server.log"
# In a session of its own, so that all of it can be stopped and nothing else.
setsid buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" \
    run --isolation chroot --volume "$PWD/examples/scenes/model:/bundle:ro" \
    --env TERAN_HOST=127.0.0.1 --env TERAN_PRECISION=fp32 \
    --env TERAN_GRPC_PORT="$grpc" \
    --env TERAN_METRICS_PORT="$metrics" --env TERAN_HEALTH_PORT="$health" \
    "$container" -- teran-entrypoint > "$log" 2>&1 &
server=$!
stop() {
    kill -TERM -- "-$server" 2> /dev/null || true
    wait "$server" 2> /dev/null || true
    buildah rm "$container" > /dev/null
}
trap stop EXIT
for _ in $(seq 240); do
    kill -0 "$server" 2> /dev/null || { cat "$log"; echo "the server ended"; exit 1; }
    python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$health/health/ready')" 2> /dev/null && break
    sleep 1
done
step "the client against it"
"${PYTHON:-.venv/bin/python}" -m container.smoke "127.0.0.1:$grpc"
step "passed; the image has $size"
