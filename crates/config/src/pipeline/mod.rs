//! A recipe as stages: what is to be done, in which order, by which program, under which identity.

mod build;
mod contents;
mod references;
mod search;

pub(crate) use references::references;
pub use search::{Candidate, Settings};

use crate::nearest::hint;
use crate::resolved::Resolved;
use equipoise_base::{Error, Identity, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Packs a split into one file with checksums.
    Prepare,
    /// Trains a classifier that serves others.
    Classifier,
    /// Stores features of a split.
    Features,
    /// Stores class statistics of features, which hardness needs.
    Statistics,
    /// Trains the generator.
    Diffusion,
    /// Stores what a latent generator is told: embeddings of real images, or of texts.
    Embed,
    /// Generates a set.
    Generate,
    /// Trains a classifier to compare.
    Arm,
    /// Measures the accuracy of all arms.
    Evaluate,
    /// Measures the synthetic sets.
    Metrics,
    /// Sweeps guidance strengths.
    Grid,
    /// Sweeps the dropout of the image condition.
    Dropout,
    /// The two-dimensional toy.
    Toy,
    /// Writes the page; done by the front end itself.
    Report,
}

impl Kind {
    /// The step binary; none for what the front end does itself.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Kind::Prepare => Some("equipoise-prepare"),
            Kind::Classifier | Kind::Diffusion | Kind::Arm => Some("equipoise-train"),
            Kind::Features | Kind::Statistics | Kind::Embed => Some("equipoise-features"),
            Kind::Generate | Kind::Grid | Kind::Dropout | Kind::Toy => Some("equipoise-generate"),
            Kind::Evaluate | Kind::Metrics => Some("equipoise-metrics"),
            Kind::Report => None,
        }
    }

    /// Ranks share this work; other stages run on one.
    pub fn is_parallel(self) -> bool {
        !matches!(self, Kind::Report)
    }
}

/// One resumable batch job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name, and folder under `stages/`.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// Stages whose results it reads; all of them come earlier in the list.
    pub after: Vec<String>,
    /// Its part of the configuration, complete, with absolute paths.
    pub params: Value,
    /// Everything that decides its result, the identities of the stages before it included.
    pub decides: Value,
    /// Hash of `decides`.
    pub identity: Identity,
}

/// Name of the field of `identity.json` that holds [`Stage::identity`].
pub const CONFIGURATION: &str = "configuration";

impl Stage {
    /// What decides the result, one value per dotted name, to be recorded in the stage's `identity.json` beside what
    /// the machine decides. [`CONFIGURATION`] is the hash of them all.
    pub fn identity_fields(&self) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::from([(CONFIGURATION.to_string(), self.identity.to_string())]);
        leaves(&self.decides, "", &mut fields);
        fields
    }
}

fn leaves(value: &Value, path: &str, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &path, fields);
            }
        }
        Value::Null => {}
        _ => {
            fields.insert(path.to_string(), value.to_string());
        }
    }
}

/// The stages of a recipe, each after those it needs.
///
/// # Errors
/// 78 when a weight file or class list that an identity depends on cannot be read.
pub fn stages(resolved: &Resolved) -> Result<Vec<Stage>> {
    build::Builder::new(resolved).build()
}

/// One stage by name.
///
/// # Errors
/// As [`stages`], and 78 when the recipe has no such stage.
pub fn stage(resolved: &Resolved, name: &str) -> Result<Stage> {
    let stages = stages(resolved)?;
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    let unknown = || Error::config(format!("the recipe has no stage '{name}'{}", hint(name, &names)));
    stages.iter().find(|stage| stage.name == name).cloned().ok_or_else(unknown)
}
