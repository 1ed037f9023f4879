#!/bin/bash
# Two ranks that greet each other, started as the ranks of a run are: `equipoise doctor --node` runs this.

run={{ run }}
{%- if !modules.is_empty() %}

# Batch shells do not know `module` everywhere.
# shellcheck disable=SC1091
command -v module > /dev/null || source /etc/profile
module purge
module load {{ modules }} || exit 78
{%- endif %}
{%- if !setup.is_empty() %}
{% for line in setup %}
{{ line }}
{%- endfor %}
{%- endif %}
{% for (key, value) in environment %}
export {{ key }}={{ value }}
{%- endfor %}

# Ranks that do not find each other may wait for ever.
exec timeout {{ seconds }} {{ command }}
