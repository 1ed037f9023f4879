#!/bin/bash
# scontrol show job | show config | requeue | update.
set -u
echo "scontrol $*" >> "$FAKE_SLURM/calls"
saying=$FAKE_SLURM/say/scontrol-$1
times=$(cat "$saying/times" 2> /dev/null || echo 0)
complain() {
    cat "$saying/text" >&2
    exit 1
}
if [ "$times" -gt 0 ]; then
    echo $((times - 1)) > "$saying/times"
    [ "$(cat "$saying/after")" = yes ] || complain
fi
finish() {
    [ "$times" -gt 0 ] && complain
    exit 0
}
case $1 in
    show)
        if [ "$2" != job ]; then
            [ ! -e "$FAKE_SLURM/say/$2/out" ] || cat "$FAKE_SLURM/say/$2/out"
            exit 0
        fi
        job=$FAKE_SLURM/jobs/${3%%_*}
        if [ ! -d "$job" ]; then
            echo 'slurm_load_jobs error: Invalid job id specified' >&2
            exit 1
        fi
        echo "JobId=$3 JobName=$(cat "$job/name")"
        echo "   UserId=me(1000) GroupId=me(1000) MCS_label=N/A"
        echo "   JobState=$(cat "$job/state") Reason=$(cat "$job/reason") Dependency=(null)"
        echo "   Requeue=1 Restarts=$(cat "$job/restarts") BatchFlag=1 Reboot=0 ExitCode=0:0"
        echo "   ReqNodeList=(null) ExcNodeList=$(cat "$job/excluded" 2> /dev/null || echo '(null)')"
        ;;
    requeue)
        job=$FAKE_SLURM/jobs/${2%%_*}
        if [ "$(cat "$job/state")" = PENDING ]; then
            echo 'slurm_requeue error: Job is pending execution' >&2
            exit 1
        fi
        echo PENDING > "$job/state"
        echo BeginTime > "$job/reason"
        echo $(($(cat "$job/restarts") + 1)) > "$job/restarts"
        finish
        ;;
    update)
        id=${2#JobId=}
        case $3 in
            ExcNodeList=*) echo "${3#*=}" > "$FAKE_SLURM/jobs/${id%%_*}/excluded" ;;
            *) echo "$3" > "$FAKE_SLURM/jobs/${id%%_*}/start" ;;
        esac
        finish
        ;;
esac
