#!/bin/sh
# Makes engines that are missing or stale, then serves. Arguments go to `teran serve`.
set -eu
if [ -d "$TERAN_BUNDLE" ]; then
    teran export
elif [ ! -e "$TERAN_REPOSITORY" ]; then
    echo "teran: mount a bundle at $TERAN_BUNDLE (see 'teran convert'), or a repository at $TERAN_REPOSITORY" >&2
    exit 2
fi
exec teran serve "$@"
