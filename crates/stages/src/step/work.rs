//! What a rank notes about its time: finished units and how long they took (`rundir::work`).

use super::{Step, lock, prepared};
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use equipoise_rundir::vfs::VfsFile;
use equipoise_rundir::work::Span;
use std::ops::Range;
use std::time::Duration;

/// The file of this rank and attempt, opened when there is something to note.
#[derive(Default)]
pub(super) struct WorkLog(Option<Box<dyn VfsFile>>);

impl Step {
    /// Notes what this rank has made by itself, while others made something else.
    pub fn note_work(&self, of: &str, units: Range<u64>, took: Duration) {
        self.note(of, units, took, 1.0 / self.world() as f64);
    }

    /// Notes, on the root, what all ranks have made together.
    pub fn note_common_work(&self, of: &str, units: Range<u64>, took: Duration) {
        if self.is_root() {
            self.note(of, units, took, 1.0);
        }
    }

    /// Notes the stage as a whole, if nothing smaller was noted.
    pub(super) fn note_stage(&self) {
        if lock(&self.work).0.is_none() {
            self.note_common_work("stage", 0..1, self.started.elapsed());
        }
    }

    fn note(&self, of: &str, units: Range<u64>, took: Duration, share: f64) {
        if self.rehearses() {
            return;
        }
        let seconds = took.as_secs_f64();
        let (of, wall) = (of.to_string(), self.clock.wall());
        let span = Span { of, from: units.start, until: units.end, seconds, share, wall };
        if let Err(error) = self.append_span(&span) {
            // The result is there; only its time is not on record.
            equipoise_telemetry::warn!("{error}");
        }
    }

    fn append_span(&self, span: &Span) -> Result<()> {
        let mut line = serde_json::to_vec(span).or_exit(ExitCode::Bug, "a span of work")?;
        line.push(b'\n');
        let path = self.records.work_of(self.attempt, self.rank());
        let failed = |error| Error::io("append to", &path, error);
        let mut log = lock(&self.work);
        let file = match &mut log.0 {
            Some(file) => file,
            closed => closed.insert(self.vfs.append(&prepared(&*self.vfs, &path)?).map_err(failed)?),
        };
        file.write_all(&line).map_err(failed)
    }
}
