//! `scontrol show ...`: blocks of `Key=Value`, and the controller's configuration.

use crate::state::JobState;
use std::collections::BTreeMap;

/// What `scontrol show job` says of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// State.
    pub state: JobState,
    /// Why it is in that state.
    pub reason: String,
    /// How often it was restarted.
    pub restarts: u32,
    /// Nodes that it keeps away from, in Slurm's short form.
    pub excluded: Option<String>,
}

impl Job {
    /// Reads the first block. Names, paths and comments stand there unquoted and may hold anything, so a key counts only
    /// where Slurm puts it: its line begins with one of Slurm's own keys, before the job's own text.
    pub fn parse(text: &str) -> Option<Self> {
        let block = text.split("\n\n").find(|block| !block.trim().is_empty())?;
        let line = |key: &str| {
            let lines = block.lines().skip(1).map(str::trim_start);
            lines.filter_map(|line| line.strip_prefix(key)).next()
        };
        let value = |line: &str, key: &str| {
            line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_string)
        };
        let state = line("JobState=")?;
        let restarts = value(line("Requeue=")?, "Restarts=")?.parse().ok()?;
        let excluded = line("ReqNodeList=").and_then(|line| value(line, "ExcNodeList="));
        Some(Self {
            state: JobState::parse(state.split_whitespace().next()?),
            reason: value(state, "Reason=").unwrap_or_default(),
            restarts,
            excluded: excluded.filter(|nodes| nodes != "(null)"),
        })
    }
}

/// `scontrol show config`: its lines `Key = Value`.
pub fn config(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let key = key.trim();
        let legal = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "/_-".contains(c));
        legal.then(|| (key.to_string(), value.trim().to_string()))
    };
    text.lines().filter_map(pair).collect()
}

/// `scontrol show partition`: the keys of each partition.
pub fn partitions(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let block = |block: &str| {
        let words = block.split_whitespace().filter_map(|word| word.split_once('='));
        let keys: BTreeMap<String, String> =
            words.map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Some((keys.get("PartitionName")?.clone(), keys))
    };
    text.split("\n\n").filter_map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = include_str!("../tests/recorded/scontrol-show-job-22.05.txt");
    const SHOWN_24: &str = include_str!("../tests/recorded/scontrol-show-job-24.05.txt");

    #[test]
    fn jobs_of_two_versions() {
        let job = Job::parse(SHOWN).unwrap();
        assert_eq!((job.state, &*job.reason, job.restarts), (JobState::Running, "None", 2));
        let job = Job::parse(SHOWN_24).unwrap();
        assert_eq!((job.state, &*job.reason, job.restarts), (JobState::Completing, "TimeLimit", 0));
    }

    #[test]
    fn text_of_the_user_is_not_mistaken_for_slurms() {
        let hostile = SHOWN.replace("JobName=quickstart", "JobName=x JobState=CANCELLED Restarts=9");
        assert_eq!(Job::parse(&hostile), Job::parse(SHOWN));
        for garbage in
            ["", "\n\n", "slurm_load_jobs error: Invalid job id specified", "JobId=1\n   JobState="]
        {
            assert_eq!(Job::parse(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn settings_and_partitions() {
        let config = config(include_str!("../tests/recorded/scontrol-show-config-22.05.txt"));
        assert_eq!((&*config["MaxArraySize"], &*config["PreemptMode"]), ("1001", "REQUEUE"));
        assert_eq!(&*config["SchedulerParameters"], "bf_interval=1,preempt_youngest_first");
        let partitions = partitions(include_str!("../tests/recorded/scontrol-show-partition-22.05.txt"));
        assert_eq!(partitions.keys().collect::<Vec<_>>(), ["high", "low"]);
        assert_eq!((&*partitions["low"]["GraceTime"], &*partitions["low"]["Default"]), ("6", "YES"));
    }
}
