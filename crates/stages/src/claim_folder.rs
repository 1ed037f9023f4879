//! Claims of array tasks: files in `claims/<attempt>/` of the stage, one per unit, each naming the task that took it.
//!
//! Nobody waits for a claim to expire. A task that Slurm starts again gives back what its earlier start had claimed; a
//! task that never comes back keeps its claims until the stage is taken up by another job, whose attempt begins with an
//! empty folder. A unit made twice is made of the same bytes, so neither case can do harm.

use crate::job::Task;
use equipoise_base::{Error, Result};
use equipoise_comm::claim_files::ExclusiveFiles;
use equipoise_rundir::{StageDir, Vfs, create_dirs};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

/// Who claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claimant {
    task: u64,
    restart: u32,
}

/// The claims of one attempt of a stage, for one task.
pub struct ClaimFolder {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    claimant: Claimant,
}

impl ClaimFolder {
    /// The claims that all tasks of `attempt` share, made if they are not there.
    ///
    /// # Errors
    /// 74 if the folder cannot be made.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &StageDir, attempt: u64, task: Task, restart: u32) -> Result<Self> {
        let path = dir.claims().join(attempt.to_string());
        create_dirs(&*vfs, &path)?;
        Ok(Self { vfs, path, claimant: Claimant { task: task.index, restart } })
    }

    /// Gives back what earlier starts of this task had claimed, and removes the claims of earlier attempts. One rank of
    /// the task does this before any of them claims.
    ///
    /// # Errors
    /// 74 if a claim cannot be read or removed.
    pub fn clean(&self) -> Result<()> {
        let all = self.path.parent().unwrap_or(&self.path);
        let attempt = |name: &str| name.parse::<u64>().ok();
        let own = self.path.file_name().and_then(|name| attempt(name.to_str()?));
        for entry in self.vfs.list_if_exists(all).map_err(|error| Error::io("list", all, error))? {
            if attempt(&entry.name) < own {
                // Another task may be at it too; what is left is in nobody's way.
                let _ = self.vfs.remove_dir_all(&all.join(&entry.name));
            }
        }
        if self.claimant.restart == 0 {
            return Ok(());
        }
        for name in self.list()? {
            let path = self.path.join(&name);
            let bytes = self.vfs.read(&path).map_err(|error| Error::io("read", &path, error))?;
            // A claim that was cut short by a crash is nobody's: only its own task could have come back for it.
            let stale = serde_json::from_slice::<Claimant>(&bytes)
                .map_or(true, |by| by.task == self.claimant.task && by.restart < self.claimant.restart);
            if stale {
                self.vfs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        Ok(())
    }
}

impl ExclusiveFiles for ClaimFolder {
    fn create_exclusive(&self, name: &str) -> Result<bool> {
        let path = self.path.join(name);
        let mut file = match self.vfs.create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            file => file.map_err(|error| Error::io("create", &path, error))?,
        };
        let record = serde_json::to_vec(&self.claimant).unwrap_or_default();
        let written = file.write_all(&record).and_then(|()| file.close());
        written.map(|()| true).map_err(|error| Error::io("write", &path, error))
    }

    fn list(&self) -> Result<Vec<String>> {
        let entries = self.vfs.list(&self.path).map_err(|error| Error::io("list", &self.path, error))?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_rundir::fault::FaultFs;
    use equipoise_rundir::{RunDir, StageKey};

    fn folder(fs: &FaultFs, attempt: u64, task: u64, restart: u32) -> ClaimFolder {
        let dir = RunDir::new("/run").stage(&StageKey::new("generate").unwrap());
        let folder =
            ClaimFolder::open(Arc::new(fs.clone()), &dir, attempt, Task { index: task, count: 2 }, restart)
                .unwrap();
        folder.clean().unwrap();
        folder
    }

    #[test]
    fn a_restarted_task_gives_back_its_own_claims_only() {
        let fs = FaultFs::new();
        assert!(folder(&fs, 1, 0, 0).create_exclusive("unit-1").unwrap());
        assert!(folder(&fs, 1, 1, 0).create_exclusive("unit-2").unwrap());
        assert!(!folder(&fs, 1, 1, 0).create_exclusive("unit-1").unwrap());
        assert_eq!(folder(&fs, 1, 0, 1).list().unwrap(), ["unit-2"]);
        assert!(folder(&fs, 1, 0, 1).create_exclusive("unit-1").unwrap());
        assert_eq!(folder(&fs, 1, 0, 1).list().unwrap(), ["unit-1", "unit-2"], "those of this start stay");
    }

    #[test]
    fn another_attempt_begins_with_nothing_claimed() {
        let fs = FaultFs::new();
        assert!(folder(&fs, 1, 0, 0).create_exclusive("unit-1").unwrap());
        assert!(folder(&fs, 2, 0, 0).list().unwrap().is_empty());
        assert!(folder(&fs, 1, 0, 0).list().unwrap().is_empty(), "the earlier claims are removed");
    }
}
