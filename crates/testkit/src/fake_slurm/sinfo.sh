#!/bin/bash
# sinfo: what the test says.
set -u
echo "sinfo $*" >> "$FAKE_SLURM/calls"
[ ! -e "$FAKE_SLURM/say/sinfo/out" ] || cat "$FAKE_SLURM/say/sinfo/out"
