#!/bin/bash
# scancel JOB...
set -u
echo "scancel $*" >> "$FAKE_SLURM/calls"
for id in "$@"; do
    [ ! -d "$FAKE_SLURM/jobs/$id" ] || echo CANCELLED > "$FAKE_SLURM/jobs/$id/state"
done
