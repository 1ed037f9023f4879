#!/bin/bash
{%- for directive in directives %}
#SBATCH {{ directive }}
{%- endfor %}

# Stage {{ stage }} of the run {{ name }}. Written by `equipoise submit`, which overwrites it. To submit it by hand:
#     cd {{ run }} && sbatch slurm/{{ job }}.sh

run={{ run }}
stage={{ stage }}
equipoise={{ front_end }}
{%- if !modules.is_empty() %}

# Batch shells do not know `module` everywhere.
# shellcheck disable=SC1091
command -v module > /dev/null || source /etc/profile
module purge
module load {{ modules }} || exit 78
module list
{%- endif %}
{%- if !setup.is_empty() %}
{% for line in setup %}
{{ line }}
{%- endfor %}
{%- endif %}

# The same for every rank: threads and instruction set decide the last bits of a result.
{%- for (key, value) in environment %}
export {{ key }}={{ value }}
{%- endfor %}
{%- if let Some(scratch) = scratch %}

# Inputs are copied to the disk of each node, if they fit. The step looks there first.
scratch={{ scratch }}
if [ -d "$scratch" ]; then
    export EQUIPOISE_SCRATCH=$scratch/equipoise-$SLURM_JOB_ID
    srun --ntasks={{ nodes }} --ntasks-per-node=1 bash "$run/slurm/stage-in.sh" "$run"{{ inputs }}
fi
{%- endif %}

# Notes the attempt.
"$equipoise" batch begin --run "$run" --stage "$stage" || exit
{% match launch -%}
{% when Launch::Ranks with (launcher, command) %}
{%- if *launcher == Launcher::Srun %}
# Slurm tells the ranks when to stop: USR2 before the time limit, TERM when the job is preempted. This shell must
# outlive them.
trap told=yes TERM USR2
{{ command }} &
launcher=$!
{%- else %}
# mpirun kills its ranks two seconds after a TERM. USR2 it hands on to them, and they commit.
{{ command }} &
launcher=$!
trap 'told=yes; kill -USR2 "$launcher"' TERM USR2
{%- endif %}
# Ends what hangs: ranks that wait for others on a node that was lost.
"$equipoise" batch watch --run "$run" --stage "$stage" --launcher "$launcher" &
wait "$launcher"
status=$?
# A signal ends `wait`, not the step.
while [ -v told ]; do
    unset told
    wait "$launcher"
    status=$?
done
{% when Launch::Here with (command) %}
{{ command }}
status=$?
{% endmatch -%}
{%- if scratch.is_some() %}
# The copies are removed; results were never among them.
[ ! -v EQUIPOISE_SCRATCH ] || srun --ntasks={{ nodes }} --ntasks-per-node=1 rm -rf -- "$EQUIPOISE_SCRATCH"
{% endif %}
# Requeues this job if the stage was stopped (75) and is not at its end. Its exit status is that of the job.
trap '' TERM USR2
exec "$equipoise" batch end --run "$run" --stage "$stage" --status "$status"
