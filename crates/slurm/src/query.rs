//! Questions to Slurm, each one call whatever the number of jobs.

use crate::commands::{Commands, Failure, says_unknown_job};
use crate::site::{self, Cluster};
use crate::squeue::{self, Row};
use crate::{duration, nodes, sacct, scontrol, sinfo};
use std::collections::BTreeMap;
use std::time::Duration;

/// What squeue knows of these jobs, by id; a job that is not among the keys is over and forgotten. Recently ended jobs
/// are still shown.
///
/// # Errors
/// If Slurm gives no answer: then nothing is known about any of them.
pub fn jobs(commands: &Commands, ids: &[String]) -> Result<BTreeMap<String, Vec<Row>>, Failure> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    queue(commands, &format!("--jobs={}", ids.join(",")))
}

/// The jobs of this name.
///
/// # Errors
/// If Slurm gives no answer.
pub fn named(commands: &Commands, name: &str) -> Result<Vec<Row>, Failure> {
    let found = queue(commands, &format!("--name={name}"))?;
    // Without --name support for what was asked, all jobs would be shown.
    Ok(found.into_values().flatten().filter(|row| row.name == name).collect())
}

fn queue(commands: &Commands, which: &str) -> Result<BTreeMap<String, Vec<Row>>, Failure> {
    let format = format!("--format={}", squeue::FORMAT);
    match commands.run("squeue", &["--noheader", "--states=all", which, &format]) {
        Ok(answer) => Ok(squeue::parse(&answer.out)),
        // A single id that Slurm has forgotten is an error, one of several is not.
        Err(Failure::Refused(text)) if says_unknown_job(&text) => Ok(BTreeMap::new()),
        Err(failure) => Err(failure),
    }
}

/// Whether a job waits or runs; none if Slurm gives no answer.
pub fn is_known(commands: &Commands, id: &str) -> Option<bool> {
    let found = jobs(commands, &[id.to_string()]).ok()?;
    Some(found.values().flatten().any(|row| row.state.is_live()))
}

/// Time to the limit of a job; none without a limit or an answer.
pub fn time_left(commands: &Commands, id: &str) -> Option<Duration> {
    let answer = commands.run("squeue", &["--noheader", &format!("--jobs={id}"), "--format=%L"]).ok()?;
    duration::parse(answer.out.lines().next()?)
}

/// How jobs ended, as far as accounting tells; nothing where there is none.
pub fn ended(commands: &Commands, ids: &[String]) -> BTreeMap<String, sacct::Row> {
    if ids.is_empty() {
        return BTreeMap::new();
    }
    let jobs = format!("--jobs={}", ids.join(","));
    let args: Vec<&str> = sacct::OPTIONS.into_iter().chain([jobs.as_str()]).collect();
    commands.run("sacct", &args).map(|answer| sacct::parse(&answer.out)).unwrap_or_default()
}

/// States of nodes by name: of those that `selection` (`--nodes=LIST`, `--partition=NAME`) picks.
///
/// # Errors
/// If Slurm gives no answer.
pub fn nodes(commands: &Commands, selection: &str) -> Result<BTreeMap<String, String>, Failure> {
    let format = format!("--format={}", nodes::FORMAT);
    commands
        .run("sinfo", &["--noheader", "--Node", selection, &format])
        .map(|answer| nodes::parse(&answer.out))
}

/// The controller's configuration.
///
/// # Errors
/// If Slurm gives no answer.
pub fn config(commands: &Commands) -> Result<BTreeMap<String, String>, Failure> {
    commands.run("scontrol", &["show", "config"]).map(|answer| scontrol::config(&answer.out))
}

/// Everything that Slurm reports about itself and its nodes; what it does not answer is left out.
///
/// # Errors
/// If the controller gives no answer.
pub fn cluster(commands: &Commands) -> Result<Cluster, Failure> {
    let text = |program: &str, args: &[&str]| {
        commands.run(program, args).map(|answer| answer.out + &answer.err).unwrap_or_default()
    };
    Ok(Cluster {
        config: config(commands)?,
        partitions: scontrol::partitions(&text("scontrol", &["show", "partition"])),
        nodes: sinfo::parse(&text("sinfo", &["--noheader", &format!("--format={}", sinfo::FORMAT)])),
        mpi: site::mpi_types(&text("srun", &["--mpi=list"])),
    })
}

/// Slurm's own default of `MaxArraySize`: one more than the highest index.
const MAX_ARRAY_SIZE: u32 = 1001;

/// Tasks that an array may have.
pub fn max_array(commands: &Commands) -> u32 {
    let configured = config(commands).ok().and_then(|config| config.get("MaxArraySize")?.parse().ok());
    configured.unwrap_or(MAX_ARRAY_SIZE).saturating_sub(1).max(1)
}
