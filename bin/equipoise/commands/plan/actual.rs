//! What a run has taken so far on its disk, to hold against the plan.

use equipoise_base::{Error, Result};
use equipoise_rundir::RunDir;
use serde::Serialize;
use std::path::Path;

/// What is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OnDisk {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files and folders, the run directory itself included.
    pub files: u64,
}

/// Looks at everything in a run directory; nothing if it is not there.
///
/// # Errors
/// 74 if a folder cannot be read.
pub fn on_disk(run: &RunDir) -> Result<OnDisk> {
    let mut found = OnDisk::default();
    if run.root().is_dir() {
        found.files += 1;
        look(run.root(), &mut found)?;
    }
    Ok(found)
}

fn look(folder: &Path, found: &mut OnDisk) -> Result<()> {
    let failed = |error| Error::io("look into", folder, error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A link counts as itself; what vanishes meanwhile does not count.
        let Ok(about) = std::fs::symlink_metadata(entry.path()) else { continue };
        found.files += 1;
        match about.is_dir() {
            true => look(&entry.path(), found)?,
            false => found.bytes += about.len(),
        }
    }
    Ok(())
}

/// `+12 %`: how far `actual` is from what was expected.
pub fn deviation(expected: f64, actual: f64) -> Option<f64> {
    (expected > 0.0).then(|| 100.0 * (actual / expected - 1.0))
}
