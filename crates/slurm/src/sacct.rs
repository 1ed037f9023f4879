//! `sacct`: how jobs ended that squeue has forgotten. Many sites keep no accounting, or not for long.

use crate::state::JobState;
use std::collections::BTreeMap;

/// Options that give one line per job, without steps, in a form to be read.
pub const OPTIONS: [&str; 4] =
    ["--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode"];

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// State.
    pub state: JobState,
    /// Exit status and signal, as `status:signal`.
    pub exit: String,
}

/// The last row of each job (of each task of an array, as `ARRAY_TASK`); lines that are none are left out.
pub fn parse(text: &str) -> BTreeMap<String, Row> {
    let row = |line: &str| {
        let mut fields = line.split('|').map(str::trim);
        let (job, state, exit) = (fields.next()?, fields.next()?, fields.next()?);
        let id = job.starts_with(|c: char| c.is_ascii_digit()) && !job.contains('.');
        (id && !state.is_empty())
            .then(|| (job.to_string(), Row { state: JobState::parse(state), exit: exit.into() }))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_versions() {
        let jobs = parse(
            "12|COMPLETED|0:0\n13|CANCELLED by 1000|0:15\n14_3|OUT_OF_MEMORY|0:125\n14_4|FAILED|78:0\n15.batch|FAILED|1:0\n\
             16|PREEMPTED|0:0\n16|RUNNING|0:0\n",
        );
        assert_eq!(jobs["13"].state, JobState::Cancelled);
        assert_eq!((&jobs["14_3"].state, &*jobs["14_4"].exit), (&JobState::OutOfMemory, "78:0"));
        assert_eq!(jobs["16"].state, JobState::Running, "the last of its rows");
        assert!(!jobs.contains_key("15.batch"));
        assert!(parse("Slurm accounting storage is disabled\n").is_empty());
    }
}
