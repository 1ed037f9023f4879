#!/bin/bash
# sbatch: keeps script, arguments and environment; prints an id.
set -u
echo "sbatch $*" >> "$FAKE_SLURM/calls"
saying=$FAKE_SLURM/say/sbatch
times=$(cat "$saying/times" 2> /dev/null || echo 0)
complain() {
    cat "$saying/text" >&2
    exit 1
}
if [ "$times" -gt 0 ]; then
    echo $((times - 1)) > "$saying/times"
    [ "$(cat "$saying/after")" = yes ] || complain
fi
script='' name='' test=no
for arg in "$@"; do
    case $arg in
        --job-name=*) name=${arg#--job-name=} ;;
        --test-only) test=yes ;;
        --*) ;;
        *) script=$arg ;;
    esac
done
if [ "$test" = yes ]; then
    grep -q '^#SBATCH --partition=none' && { echo 'allocation failure: Invalid partition name specified' >&2; exit 1; }
    echo 'sbatch: Job 1 to start at 2026-01-02T03:04:05 using 1 processors on nodes n1 in partition low' >&2
    exit 0
fi
if grep -q '^#SBATCH --partition=none' "$script"; then
    echo 'sbatch: error: invalid partition specified: none' >&2
    echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2
    exit 1
fi
# mkdir is the one that several callers cannot do at once.
id=41
while ! mkdir "$FAKE_SLURM/jobs/$id" 2> /dev/null; do id=$((id + 1)); done
job=$FAKE_SLURM/jobs/$id
cp -- "$script" "$job/script"
printf '%s' "$name" > "$job/name"
printf '%s\n' "$*" > "$job/args"
env -0 | sort -z | tr '\0' '\n' > "$job/env"
pwd > "$job/dir"
echo 0 > "$job/restarts"
echo None > "$job/reason"
echo PENDING > "$job/state"
[ "$times" -gt 0 ] && complain
echo "$id"
