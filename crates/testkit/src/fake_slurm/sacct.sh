#!/bin/bash
# sacct: what the test says, or that there is no accounting.
set -u
echo "sacct $*" >> "$FAKE_SLURM/calls"
if [ -e "$FAKE_SLURM/say/sacct/out" ]; then
    cat "$FAKE_SLURM/say/sacct/out"
    exit 0
fi
echo 'Slurm accounting storage is disabled' >&2
exit 1
