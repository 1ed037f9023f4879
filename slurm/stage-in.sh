#!/bin/bash
# Copies inputs of a stage from the run directory to this node's own disk:
#
#     EQUIPOISE_SCRATCH=/local/folder stage-in.sh RUN PATH...      each PATH relative to RUN
#
# What does not fit, and what arrives with another size, is not kept: the step then reads it from the run directory. So
# this never fails a job.

run=$1
shift
case ${EQUIPOISE_SCRATCH:-} in
    /*/equipoise-*) ;;
    *) echo "stage-in: no folder on this node; reading from $run" && exit 0 ;;
esac
mkdir -p -- "$EQUIPOISE_SCRATCH" || exit 0

# A tenth is left for others.
need=$(cd -- "$run" && du --summarize --total --block-size=1 --apparent-size -- "$@" | tail -n 1 | cut -f 1)
free=$(df --output=avail --block-size=1 -- "$EQUIPOISE_SCRATCH" | tail -n 1)
if ((need > free * 9 / 10)); then
    echo "stage-in: $need bytes do not fit into $free on $(hostname); reading from $run"
    exit 0
fi

bytes() {
    find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%.0f", sum }'
}

for path in "$@"; do
    copy=$EQUIPOISE_SCRATCH/$path
    mkdir -p -- "$(dirname -- "$copy")"
    if cp -R -- "$run/$path" "$copy" && [ "$(bytes "$run/$path")" = "$(bytes "$copy")" ]; then
        echo "stage-in: $path is on $(hostname)"
    else
        echo "stage-in: $path could not be copied to $(hostname); reading from $run"
        rm -rf -- "$copy"
    fi
done
exit 0
