//! Bytes and inodes that stages leave, and those that they need meanwhile.

use super::Sizes;
use equipoise_config::recipe::Recipe;
use equipoise_config::{Kind, Stage};
use equipoise_workplan::parameters::{ClassifierSize, UNetSize};
use equipoise_workplan::space::Checkpoints;
use serde::{Deserialize as _, Serialize};
use serde_json::Value;
use std::ops::AddAssign;

/// Identity, journal, owner of the lease, outcome, status, provenance, and a log for each rank; a row of metrics takes a line.
const STAGE_BYTES: u64 = 5 << 10;
const LOG_BYTES: u64 = 256;
const ROW_BYTES: u64 = 80;
/// Their number with `metrics.jsonl`, rank 0's record of its work, and the folders of stage, lock, owner, logs, work and of
/// the attempt in both; logs come on top.
const STAGE_FILES: u64 = 15;
/// Resolved configuration with its identity, and the record of launches.
const RUN_BYTES: u64 = 32 << 10;
/// The same as inodes, with the folders of the run, its stages and its sets.
const RUN_FILES: u64 = 6;
/// Numbers, and pictures that are in it once more as text.
const REPORT_BYTES: u64 = 400 << 10;
const REPORT_FILES: u64 = 3;
/// A contact sheet or a table of results.
const SIDE_FILE_BYTES: u64 = 40 << 10;

/// One of CLIP's vectors, 1,024 float32 in the published network.
const EMBEDDING_BYTES: u64 = 4 << 10;

/// Room on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Room {
    /// Bytes of the files that are there at the end.
    pub bytes: u64,
    /// Inodes at the end: files and folders.
    pub files: u64,
    /// Most bytes at any time.
    pub peak_bytes: u64,
    /// Most inodes at any time.
    pub peak_files: u64,
}

impl Room {
    fn steady(bytes: u64, files: u64) -> Self {
        Self { bytes, files, peak_bytes: bytes, peak_files: files }
    }
}

impl AddAssign for Room {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
        self.peak_bytes += other.peak_bytes;
        self.peak_files += other.peak_files;
    }
}

/// What a run takes beside its stages.
pub fn of_run() -> Room {
    Room::steady(RUN_BYTES, RUN_FILES)
}

impl Sizes {
    /// What a stage takes on so many ranks.
    pub(super) fn room(&self, recipe: &Recipe, stage: &Stage, ranks: usize) -> Room {
        let params = &stage.params;
        let text = |key: &str| params[key].as_str().unwrap_or_default();
        if stage.kind == Kind::Report {
            return Room::steady(REPORT_BYTES, REPORT_FILES);
        }
        let mut room = Room::steady(STAGE_BYTES + LOG_BYTES * ranks as u64, STAGE_FILES + ranks as u64);
        room += match stage.kind {
            Kind::Prepare => {
                self.split(text("split")).map_or(Room::default(), |split| Room::steady(split.bytes, 2))
            }
            Kind::Generate => {
                // Ranks work by themselves here, and each records it.
                let records = (ranks as u64).saturating_sub(1);
                self.set(text("set"))
                    .map_or(Room::default(), |set| Room::steady(set.bytes, set.files + records))
            }
            Kind::Classifier | Kind::Arm | Kind::Diffusion => {
                self.training(recipe, stage).unwrap_or_default()
            }
            Kind::Features => {
                let images = self.split(text("split")).map_or(0, |split| split.images);
                // With the folder of the extractor.
                Room::steady(self.feature_file(recipe, text("classifier"), images), 2)
            }
            Kind::Embed => {
                // Images have one vector, texts one for each of 77 tokens.
                let vectors = if params["of"] == "images" { 1 } else { 77 };
                Room::steady(self.embedded(params) * vectors * EMBEDDING_BYTES, 2)
            }
            Kind::Metrics => self.metrics(recipe, params),
            Kind::Statistics => Room::steady(self.statistics(recipe, params), 1),
            Kind::Evaluate | Kind::Toy => Room::steady(SIDE_FILE_BYTES, 1),
            Kind::Grid | Kind::Dropout => Room::steady(2 * SIDE_FILE_BYTES, 2),
            Kind::Report => Room::default(),
        };
        room
    }

    /// Checkpoints and weights; none for a network whose size is not known before it is built.
    fn training(&self, recipe: &Recipe, stage: &Stage) -> Option<Room> {
        let is_generator = stage.kind == Kind::Diffusion;
        let (parameters, training) = match is_generator {
            true => {
                let network = UNetSize::deserialize(&stage.params["model"]).ok()?;
                // One row more than classes: the null label of classifier-free guidance.
                (network.count(self.channels, self.classes + 1), &stage.params["train"])
            }
            false => {
                let network = ClassifierSize::deserialize(&stage.params["arch"]).ok()?;
                (network.count(self.channels, self.classes), &stage.params)
            }
        };
        let steps = training["steps"].as_u64()?;
        let checkpoints = Checkpoints {
            parameters,
            optimizer_states: if training["optimizer"]["kind"] == "adamw" { 2 } else { 1 },
            // The average of the weights, or the best ones so far.
            averaged: is_generator || !training["validate"].is_null(),
            keep: u64::from(recipe.checkpoint.keep),
            taken: steps.div_ceil(recipe.checkpoint.every_steps.max(1)),
            stored_bytes: if is_generator && training["stored"] != "fp32" { 2 } else { 4 },
        };
        let ((bytes, files), (peak_bytes, peak_files)) = (checkpoints.space(), checkpoints.peak());
        let rows = ROW_BYTES * steps.div_ceil(training["log_every"].as_u64().unwrap_or(1).max(1));
        Some(Room { bytes: bytes + rows, files, peak_bytes: peak_bytes + rows, peak_files })
    }

    /// Features of the reference and of every set, and a sheet of each.
    fn metrics(&self, recipe: &Recipe, params: &Value) -> Room {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let extractor = text(&params["extractor"]);
        let reference = self.split(&text(&params["reference"])).map_or(0, |split| split.images);
        let file = |images: u64| self.feature_file(recipe, &extractor, images);
        // results.json, the reference, and the folders of all features and of the extractor's.
        let mut room = Room::steady(SIDE_FILE_BYTES + file(reference), 4);
        for set in params["sets"].as_array().into_iter().flatten() {
            let images = self.set(&text(&set["set"])).map_or(0, |set| set.images);
            room += Room::steady(file(images) + 2 * SIDE_FILE_BYTES, 2);
        }
        room
    }

    fn feature_dim(&self, recipe: &Recipe, classifier: &str) -> u64 {
        let helper = recipe.classifiers.get(classifier);
        let arch = helper.and_then(|helper| ClassifierSize::deserialize(&helper.training.arch.0).ok());
        arch.map_or(0, |arch| arch.feature_dim())
    }

    /// A feature file: a row of float32, with label, group, index and checksum, for each image.
    fn feature_file(&self, recipe: &Recipe, classifier: &str, images: u64) -> u64 {
        const BESIDE: u64 = 8 << 10;
        images * (4 * self.feature_dim(recipe, classifier) + 32) + BESIDE
    }

    /// Means and covariances in float64.
    fn statistics(&self, recipe: &Recipe, params: &Value) -> u64 {
        let dim = self.feature_dim(recipe, params["classifier"].as_str().unwrap_or_default());
        let slots = if params["covariance"] == "per_class" { self.classes } else { 1 };
        8 * dim * (self.classes + slots * dim)
    }
}
