#!/bin/sh
# Makes engines that are missing or stale, then serves. Arguments go to `teran serve`.
set -eu
case "${TERAN_ENGINE:-}" in
tensorrt*)
    # Without torch's warning; if it can't be imported, what it says.
    if ! python3 -W ignore -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
        echo "teran: there is no GPU in this container: start it with --gpus all, on a host with NVIDIA's container toolkit and a driver for CUDA 13" >&2
        exit 1
    fi
    ;;
esac
if [ -d "$TERAN_BUNDLE" ]; then
    teran export
elif [ ! -e "$TERAN_REPOSITORY" ]; then
    echo "teran: mount a bundle at $TERAN_BUNDLE (see 'teran convert'), or a repository at $TERAN_REPOSITORY" >&2
    exit 2
fi
exec teran serve "$@"
