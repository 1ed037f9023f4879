//! The trace of an attempt: what all ranks recorded, as one file for a trace viewer.

use super::Step;
use super::files::prepared;
use equipoise_base::{Result, trace};
use equipoise_rundir::commit_bytes;

/// Name of the file in the folder of an attempt's logs.
const FILE: &str = "trace.json";

impl Step {
    /// Joins what the ranks recorded into one file; a collective, and nothing where nobody records.
    ///
    /// # Errors
    /// 74 if it cannot be written.
    pub(super) fn write_trace(&self) -> Result<()> {
        if !self.traced {
            return Ok(());
        }
        let parts = self.comm().all_gather(trace::take(self.rank()).as_bytes())?;
        if !self.is_root() {
            return Ok(());
        }
        let parts: Vec<String> =
            parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        let path = match &self.trace_file {
            Some(file) => file.clone(),
            None => self.records.log(self.attempt, 0).with_file_name(FILE),
        };
        let path = prepared(&*self.vfs, &path)?;
        commit_bytes(&*self.vfs, &path, trace::file(&parts).as_bytes(), Some(&self.guard))?;
        equipoise_telemetry::info!("trace in {}", path.display());
        Ok(())
    }
}
