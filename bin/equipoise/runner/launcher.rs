//! Which process runs a run directory, so that `cancel` and `status` can find it.

use equipoise_base::Result;
use equipoise_rundir::{Process, RealFs, RunDir, Vfs, commit_json, read_json};
use std::path::PathBuf;

/// `launcher.json` of a run directory, while this process runs it.
pub struct LauncherRecord {
    path: PathBuf,
    process: Process,
}

impl LauncherRecord {
    /// Writes the record. Stages have leases of their own, so this one only informs.
    ///
    /// # Errors
    /// 74 if it cannot be written.
    pub fn write(run: &RunDir) -> Result<Self> {
        let record = Self { path: path(run), process: Process::current() };
        commit_json(&RealFs, &record.path, &record.process, None)?;
        Ok(record)
    }
}

impl Drop for LauncherRecord {
    fn drop(&mut self) {
        // Another launcher may have replaced it since.
        if let Ok(Some(process)) = read_json::<Process>(&RealFs, &self.path)
            && process == self.process
        {
            let _ = RealFs.remove_file(&self.path);
        }
    }
}

/// The process that runs this directory, unless it is known to be gone.
///
/// # Errors
/// 65 or 74 if the record cannot be read.
pub fn launcher_of(run: &RunDir) -> Result<Option<Process>> {
    let process = read_json::<Process>(&RealFs, &path(run))?;
    let here = Process::current();
    Ok(process.filter(|process| !here.sees_gone(process)))
}

fn path(run: &RunDir) -> PathBuf {
    run.root().join("launcher.json")
}
