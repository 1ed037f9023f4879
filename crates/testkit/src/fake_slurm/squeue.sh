#!/bin/bash
# squeue --jobs=... | --name=...: in the one format that equipoise asks for.
set -u
echo "squeue $*" >> "$FAKE_SLURM/calls"
saying=$FAKE_SLURM/say/squeue
if [ -e "$saying/out" ]; then
    cat "$saying/out"
    exit 0
fi
times=$(cat "$saying/times" 2> /dev/null || echo 0)
if [ "$times" -gt 0 ]; then
    echo $((times - 1)) > "$saying/times"
    cat "$saying/text" >&2
    exit 1
fi
ids='' name='' left=no
for arg in "$@"; do
    case $arg in
        --jobs=*) ids=${arg#--jobs=} ;;
        --name=*) name=${arg#--name=} ;;
        --format=%L) left=yes ;;
    esac
done
IFS=, read -ra wanted <<< "$ids"
[ -n "$ids" ] || wanted=("$FAKE_SLURM"/jobs/*)
wanted=("${wanted[@]##*/}")
if [ "${#wanted[@]}" = 1 ] && [ -z "$name" ] && [ ! -d "$FAKE_SLURM/jobs/${wanted[0]}" ]; then
    echo 'slurm_load_jobs error: Invalid job id specified' >&2
    exit 1
fi
if [ "$left" = yes ]; then
    echo 10:00
    exit 0
fi
for id in "${wanted[@]}"; do
    job=$FAKE_SLURM/jobs/$id
    [ -e "$job/state" ] || continue
    IFS= read -r called < "$job/name" || true
    [ -z "$name" ] || [ "$name" = "${called:-}" ] || continue
    read -r state < "$job/state"
    reason=None
    [ ! -e "$job/reason" ] || read -r reason < "$job/reason"
    nodes=''
    [ "$state" != RUNNING ] || nodes=n1
    echo "$id|N/A|$state|10:00|N/A|$nodes|${called:-}|$reason"
done
