//! `calibration.json`: speeds that `equipoise calibrate` has measured.

use equipoise_base::{Identity, Result, ensure};
use equipoise_config::BUILD_ID;
use equipoise_report::pace::Rehearsal;
use equipoise_rundir::{RealFs, RunDir, commit_json, create_dirs, read_json};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the layout on this page.
pub const VERSION: u32 = 1;

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Calibration {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Build that measured.
    pub tool: String,
    /// Seconds since 1970, for people.
    pub wall: f64,
    /// One entry for each kind of work.
    pub work: Vec<Entry>,
    /// Generation with other batch sizes.
    pub batches: Vec<BatchSize>,
}

/// One kind of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What decides its speed, see [`super::work`].
    pub work: Identity,
    /// The stage that was rehearsed; all of the same work are alike.
    pub stage: String,
    /// What was measured, and on which machine.
    pub rehearsal: Rehearsal,
}

/// A set with another batch size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BatchSize {
    /// Stage that generates the set.
    pub stage: String,
    /// Images sampled at once.
    pub batch: u64,
    /// Whether it is the recipe's.
    pub current: bool,
    /// Images per second of all ranks; none if it was not measured.
    pub images_per_second: Option<f64>,
    /// Largest resident memory of a rank, bytes.
    pub peak_memory: Option<u64>,
    /// Memory taken on its GPU, bytes.
    pub gpu_memory: Option<u64>,
    /// Why it was not measured.
    pub why: Option<String>,
}

/// The given file, or the one of the run directory if there is one.
///
/// # Errors
/// 65 if it cannot be read or is of another version; 78 if the given file does not exist.
pub fn read(run: &RunDir, file: Option<&Path>) -> Result<Option<Calibration>> {
    let default = super::default_calibration(run);
    let path = file.unwrap_or(&default);
    let calibration: Option<Calibration> = read_json(&RealFs, path)?;
    ensure!(file.is_none() || calibration.is_some(), Config, "{}: there is no such file", path.display());
    if let Some(found) = &calibration {
        ensure!(
            found.version == VERSION,
            BadData,
            "{}: version {}, and this program reads version {VERSION}",
            path.display(),
            found.version
        );
    }
    Ok(calibration)
}

impl Calibration {
    /// Machine and build, for people; none if nothing was measured.
    pub fn describe(&self) -> Option<String> {
        let Rehearsal { host, cpu, machine, ranks, .. } = &self.work.first()?.rehearsal;
        let gpu = machine.get("gpu").filter(|gpu| *gpu != "none");
        let build = if self.tool == BUILD_ID { String::new() } else { format!(", by build {}", self.tool) };
        Some(format!("{host} ({}), {ranks} ranks{build}", gpu.unwrap_or(cpu)))
    }

    /// Adds what an earlier calibration by the same build has measured and this one has not, and writes the file.
    ///
    /// # Errors
    /// 74 if it cannot be written.
    pub fn write(mut self, path: &Path) -> Result<()> {
        if let Ok(Some(earlier)) = read_json::<Calibration>(&RealFs, path)
            && (earlier.version, &earlier.tool) == (self.version, &self.tool)
        {
            let here = self.work.first().map(|entry| entry.rehearsal.machine.clone());
            let is_new = |entry: &Entry| self.work.iter().all(|own| own.work != entry.work);
            let kept = earlier.work.into_iter().filter(|entry| {
                is_new(entry) && here.as_ref().is_none_or(|here| *here == entry.rehearsal.machine)
            });
            let kept: Vec<Entry> = kept.collect();
            self.work.extend(kept);
            if self.batches.is_empty() {
                self.batches = earlier.batches;
            }
        }
        if let Some(folder) = path.parent() {
            create_dirs(&RealFs, folder)?;
        }
        commit_json(&RealFs, path, &self, None)
    }
}
