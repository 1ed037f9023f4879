//! Nodes that a run has lost: `RUN/slurm/lost/<node>/<job>.<restart>`, an empty file for each attempt that was under way.
//!
//! A folder and not a journal, because any task of an array may note a loss, and each loss is to count once.

use equipoise_base::{Error, Result};
use equipoise_rundir::{RealFs, RunDir, Vfs, create_dirs};
use equipoise_slurm::nodes::is_lost;
use equipoise_slurm::{Commands, Failure, query};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

fn folder(run: &RunDir) -> PathBuf {
    run.slurm().join("lost")
}

/// Notes those of the nodes (in Slurm's short form) of an earlier attempt that Slurm has lost.
///
/// # Errors
/// 74 if the note cannot be written; 74, 78 if Slurm gives no answer.
pub fn note(commands: &Commands, run: &RunDir, nodes: &str, attempt: &str) -> Result<()> {
    let states = query::nodes(commands, &format!("--nodes={nodes}"))?;
    for (node, _) in states.iter().filter(|(_, state)| is_lost(state)) {
        let folder = folder(run).join(node);
        create_dirs(&RealFs, &folder)?;
        let path = folder.join(attempt);
        // Not synced: a note that is lost with its file system makes a node look better than it is, and no more.
        match RealFs.create_new(&path).and_then(|file| file.close()) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::io("cannot create", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Nodes that were lost at least so many times, in order; none if `times` is 0.
pub fn often(run: &RunDir, times: u32) -> Vec<String> {
    let entries = |path: &Path| RealFs.list_if_exists(path).unwrap_or_default();
    let count = |node: &str| entries(&folder(run).join(node)).len();
    let nodes = entries(&folder(run)).into_iter().map(|entry| entry.name);
    let mut often: Vec<String> = nodes.filter(|node| times > 0 && count(node) >= times as usize).collect();
    often.sort();
    often
}

/// Whether a job of `needed` nodes could still start in its partition without `excluded`.
///
/// # Errors
/// If Slurm gives no answer.
pub fn leaves_enough(
    commands: &Commands,
    partition: &str,
    excluded: &[String],
    needed: usize,
) -> std::result::Result<bool, Failure> {
    let nodes = query::nodes(commands, &format!("--partition={partition}"))?;
    Ok(nodes.keys().filter(|node| !excluded.contains(node)).count() >= needed)
}
