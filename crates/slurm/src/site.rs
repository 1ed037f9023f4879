//! What a cluster's own settings mean for batch jobs, and a first `[slurm]` for it.

use crate::duration;
use crate::sinfo::Row;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What Slurm reports about itself.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// `scontrol show config`.
    pub config: BTreeMap<String, String>,
    /// `scontrol show partition`.
    pub partitions: BTreeMap<String, BTreeMap<String, String>>,
    /// `sinfo`.
    pub nodes: Vec<Row>,
    /// Names in `srun --mpi=list`.
    pub mpi: Vec<String>,
}

/// The settings that matter to batch jobs, and why.
const SETTINGS: [(&str, &str); 10] = [
    ("SLURM_VERSION", "22.05 and later are tested"),
    ("PreemptMode", "REQUEUE: Slurm queues preempted jobs again; CANCEL: `equipoise resume` does"),
    ("JobRequeue", "0: only jobs that ask for it are queued again, as the scripts do"),
    ("RequeueExit", "jobs that end with this status are queued again by Slurm itself"),
    ("MaxBatchRequeue", "so many requeues of Slurm's own before a job is held"),
    ("KillWait", "between TERM and KILL"),
    ("OverTimeLimit", "what a job may run beyond its time limit"),
    ("MaxArraySize", "one more than the highest index of an array"),
    ("MpiDefault", "the scripts say --mpi themselves"),
    ("AccountingStorageType", "without it `equipoise status` knows ended jobs from files only"),
];

/// Lines `setting = value: what it means`.
pub fn settings(cluster: &Cluster) -> Vec<(String, String)> {
    let setting = |(name, why): (&str, &str)| {
        let value = cluster.config.get(name)?;
        Some((name.to_string(), format!("{value} ({why})")))
    };
    SETTINGS.into_iter().filter_map(setting).collect()
}

/// How each partition treats a job that must make room.
pub fn preemption(cluster: &Cluster) -> Vec<(String, String)> {
    let describe = |(name, keys): (&String, &BTreeMap<String, String>)| {
        let key = |name: &str| keys.get(name).map_or("", String::as_str);
        let what = match key("PreemptMode") {
            "OFF" => "jobs are not preempted".to_string(),
            mode => {
                let grace: u64 = key("GraceTime").parse().unwrap_or(0);
                let then = match (mode.split(',').next_back().unwrap_or(mode), grace) {
                    ("CANCEL", _) => {
                        "then `equipoise resume` is needed, unless the job requeues itself in its grace time"
                    }
                    (_, 0) => "no time to stop: what was not committed is done again",
                    _ => "the stages commit and stop in that time",
                };
                format!("PreemptMode={mode}, GraceTime={grace} s: {then}")
            }
        };
        (name.clone(), what)
    };
    cluster.partitions.iter().map(describe).collect()
}

/// The names in the answer of `srun --mpi=list`.
pub fn mpi_types(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines() {
        let line = line.trim().trim_start_matches("srun:").trim();
        let list = line.split_once("available:").map_or(line, |(_, list)| list);
        if list.ends_with("...") || list.is_empty() {
            continue;
        }
        names.extend(list.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_string));
    }
    names
}

/// A time limit that the scheduler can fit in anywhere.
const SHORT: u64 = 4;

/// A first site file: the most suitable partition, and what its nodes have.
pub fn propose(cluster: &Cluster) -> String {
    let mut text = String::from(
        "# Proposed by `equipoise doctor --write-site` from what Slurm reports. Check it, complete it, and put it where\n\
         # $EQUIPOISE_SITE points, or into /etc/equipoise/config.toml or ~/.config/equipoise/config.toml.\nschema = 1\n\n[slurm]\n",
    );
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    match cluster.mpi.iter().find(|name| *name == "pmix").or(cluster.mpi.iter().find(|name| *name == "pmi2"))
    {
        Some(name) => line(format!("mpi = \"{name}\"")),
        None => line("# srun offers no PMI that an MPI library could use.\nlauncher = \"mpirun\"".into()),
    }
    line("# What your allocations are charged to.\n#account = \"...\"".into());
    if let Some((name, keys)) = partition(cluster) {
        let key = |name: &str| keys.get(name).map_or("?", String::as_str);
        line(format!(
            "# PreemptMode={}, GraceTime={} s, MaxTime={}",
            key("PreemptMode"),
            key("GraceTime"),
            key("MaxTime")
        ));
        line(format!("partition = \"{name}\""));
        let longest = duration::parse(key("MaxTime")).map_or(SHORT, |limit| limit.as_secs() / 3600);
        line("# Stages go on in the next attempt: a short limit starts sooner.".into());
        match longest {
            0 => line(format!("time = \"{}\"", key("MaxTime"))),
            hours => line(format!("time = \"{}:00:00\"", hours.min(SHORT))),
        }
        let nodes = cluster.nodes.iter().filter(|row| row.partition == *name).max_by_key(|row| row.nodes);
        if let Some(nodes) = nodes {
            line(format!("# {} nodes of {} CPUs and {} MB.", nodes.nodes, nodes.cpus, nodes.memory));
            line("nodes = 1".into());
            match &nodes.gres {
                Some(gres) => {
                    let gres = gres.split('(').next().unwrap_or(gres);
                    let count =
                        gres.rsplit(':').next().and_then(|count| count.parse::<u32>().ok()).unwrap_or(1);
                    line(format!("gres = \"{gres}\""));
                    line(format!("ntasks_per_node = {count}"));
                    line(format!("cpus_per_task = {}", (nodes.cpus / count.max(1)).max(1)));
                }
                None => line(format!("ntasks_per_node = {}", nodes.cpus)),
            }
            line(format!("mem_per_cpu = \"{}M\"", nodes.memory / u64::from(nodes.cpus.max(1))));
            if !nodes.features.is_empty() {
                line(format!("# Features to choose from: {}", nodes.features.join(", ")));
                line("#constraint = \"...\"".into());
            }
        }
    }
    text
}

/// A partition whose jobs may be preempted is the one with room; else the default one.
fn partition(cluster: &Cluster) -> Option<(&String, &BTreeMap<String, String>)> {
    let up = || {
        let open = |keys: &BTreeMap<String, String>| keys.get("State").is_none_or(|state| state == "UP");
        cluster.partitions.iter().filter(move |(_, keys)| open(keys))
    };
    let is =
        |keys: &BTreeMap<String, String>, key: &str, value: &str| keys.get(key).is_some_and(|it| it == value);
    up().find(|(_, keys)| is(keys, "PreemptMode", "REQUEUE"))
        .or_else(|| up().find(|(_, keys)| is(keys, "Default", "YES")))
        .or_else(|| up().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{scontrol, sinfo};

    fn cluster() -> Cluster {
        Cluster {
            config: scontrol::config(include_str!("../tests/recorded/scontrol-show-config-22.05.txt")),
            partitions: scontrol::partitions(include_str!(
                "../tests/recorded/scontrol-show-partition-22.05.txt"
            )),
            nodes: sinfo::parse("low|up|infinite|16|64|512000|gpu:a100:4(S:0-1)|avx512,ib\n"),
            mpi: mpi_types(
                "MPI plugin types are...\n\tcray_shasta\n\tpmix\nspecific pmix plugin versions available: pmix_v4\n",
            ),
        }
    }

    #[test]
    fn a_proposal_is_a_configuration() {
        let text = propose(&cluster());
        insta::assert_snapshot!(text);
        let keys = text.split_once("[slurm]\n").unwrap().1;
        let slurm = crate::script::tests::slurm(keys);
        assert_eq!((slurm.mpi.as_str(), slurm.job.partition.as_deref()), ("pmix", Some("low")));
    }

    #[test]
    fn a_cluster_that_says_little() {
        let text = propose(&Cluster::default());
        assert!(text.contains("launcher = \"mpirun\"") && !text.contains("partition"), "{text}");
        crate::script::tests::slurm(text.split_once("[slurm]\n").unwrap().1);
    }

    #[test]
    fn lists_of_mpi_types_of_two_versions() {
        assert_eq!(cluster().mpi, ["cray_shasta", "pmix", "pmix_v4"]);
        assert_eq!(mpi_types("srun: MPI types are...\nsrun: none\nsrun: pmi2\n"), ["none", "pmi2"]);
    }

    #[test]
    fn what_preemption_means() {
        let modes = preemption(&cluster());
        assert_eq!(modes[0], ("high".into(), "jobs are not preempted".into()));
        assert!(modes[1].1.contains("GraceTime=6 s: the stages commit"), "{modes:?}");
        assert!(
            settings(&cluster()).iter().any(|(name, text)| name == "KillWait" && text.starts_with("5 sec"))
        );
    }
}
