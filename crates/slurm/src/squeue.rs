//! `squeue`: one line per job, in a format that all versions since 14 know. (`--json` changes with every release.)

use crate::duration;
use crate::state::JobState;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Separates fields: it is in none of them.
const SEPARATOR: char = '|';

/// Array or job id, index in the array, state, time left, start, nodes, name, reason. The reason is free text of the site,
/// so it comes last.
pub const FORMAT: &str = "%F|%K|%T|%L|%S|%N|%j|%r";

/// A job, or one task of an array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Id; that of the whole array for a task.
    pub job: String,
    /// Index in the array; a range such as `4-63%16` for tasks that wait together.
    pub task: Option<String>,
    /// State.
    pub state: JobState,
    /// Why it waits, as Slurm says it; none if there is no reason.
    pub reason: Option<String>,
    /// Nodes, in Slurm's short form.
    pub nodes: String,
    /// Seconds to the time limit.
    #[serde(serialize_with = "seconds")]
    pub left: Option<Duration>,
    /// When it started or is expected to, as Slurm writes it.
    pub start: Option<String>,
    /// Name.
    pub name: String,
}

fn seconds<S: serde::Serializer>(left: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    left.map(|left| left.as_secs()).serialize(serializer)
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.splitn(8, SEPARATOR).map(str::trim).collect();
        let [job, task, state, left, start, nodes, name, reason] = fields[..] else { return None };
        let plain = job.bytes().all(|byte| byte.is_ascii_digit()) && !job.is_empty();
        let given = |text: &str| {
            (!["", "N/A", "None", "(null)"].contains(&text))
                .then(|| text.trim_matches(['(', ')']).to_string())
        };
        (plain && !state.is_empty()).then(|| Self {
            job: job.into(),
            task: given(task).map(|task| task.trim_matches(['[', ']']).to_string()),
            state: JobState::parse(state),
            reason: given(reason),
            nodes: given(nodes).unwrap_or_default(),
            left: duration::parse(left),
            start: given(start),
            name: name.into(),
        })
    }
}

/// The rows by job id; lines that are none are left out.
pub fn parse(text: &str) -> BTreeMap<String, Vec<Row>> {
    let mut jobs: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in text.lines().filter_map(Row::parse) {
        jobs.entry(row.job.clone()).or_default().push(row);
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_arrays_and_reasons() {
        let jobs = parse(
            "12|N/A|RUNNING|1-02:30:00|2026-01-02T03:04:05|n[1-2,7]|run.train.g-0a|None\n\
             13|N/A|PENDING|4:00:00|N/A||run.train.ce.s0-0b|(ReqNodeNotAvail, UnavailableNodes:n3|n4)\n\
             14|[5-63%16]|PENDING|UNLIMITED|N/A||run.generate.x.k0-0c|JobArrayTaskLimit\n\
             14|3|RUNNING|INVALID|2026-01-02T03:04:05|n5|run.generate.x.k0-0c|None\n",
        );
        let running = &jobs["12"][0];
        assert_eq!(
            (&running.state, &*running.nodes, &running.reason),
            (&JobState::Running, "n[1-2,7]", &None)
        );
        assert_eq!(running.left, Some(Duration::from_secs(95_400)));
        assert_eq!(jobs["13"][0].reason.as_deref(), Some("ReqNodeNotAvail, UnavailableNodes:n3|n4"));
        let tasks: Vec<_> = jobs["14"].iter().map(|row| row.task.as_deref()).collect();
        assert_eq!(tasks, [Some("5-63%16"), Some("3")]);
        assert_eq!(jobs["14"][0].left, None);
    }

    #[test]
    fn garbage_is_no_job_and_an_unknown_state_is_kept() {
        let text = "slurm_load_jobs error: Unexpected message received\n\0\0\n|||||||\n1|2|3\nx|N/A|RUNNING|1|1|n|j|r\n\
                    7|N/A|FOO|1:00|N/A||j|None\n\u{fffd}\u{fffd}|";
        let jobs = parse(text);
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs["7"][0].state, JobState::Other("FOO".into()));
        assert!(parse("").is_empty());
    }
}
