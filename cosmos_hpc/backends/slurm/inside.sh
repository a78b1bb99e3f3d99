#!/bin/sh
# Runs a command only in a container that pyxis has started: inside.sh SIGN COMMAND...
#
# A node whose pyxis is not set up ignores the flags of a job step that begins on another node, and
# would run its part of the step outside. SIGN is a path that is mounted in the container alone.

sign=$1
shift
if [ ! -e "$sign" ]; then
    echo "error: ${SLURMD_NODENAME:-this node} runs this outside of the container; pyxis seems" \
        "not to be set up there" >&2
    exit 1
fi
exec "$@"
