#!/bin/bash
# srun OPTION... COMMAND: one task, here. A test may put another command in its place: $FAKE_SRUN.
set -u
echo "srun $*" >> "$FAKE_SLURM/calls"
while [[ ${1:-} == -* ]]; do shift; done
if [ -n "${FAKE_SRUN:-}" ]; then
    exec bash -c "$FAKE_SRUN" srun "$@"
fi
exec "$@"
