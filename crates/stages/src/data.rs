//! What a recipe's `[data]` and `[classifiers]` mean to a stage: shapes, names, networks, views.

use crate::nets::{DataShape, Frozen};
use crate::step::Step;
use equipoise_base::{Error, Result, ensure};
use equipoise_catalog::{Groups, list};
use equipoise_config::method;
use equipoise_config::recipe::{Classes, Dataset, Helper};
use equipoise_data::AugmentConfig;
use equipoise_data::augment::Op;
use equipoise_diffusion::view::View;
use equipoise_nn::runtime;
use std::path::{Path, PathBuf};
use tch::Kind;

impl Step {
    /// `[data]`.
    ///
    /// # Errors
    /// 78 if the recipe has none.
    pub fn dataset(&self) -> Result<&Dataset> {
        let data = self.recipe().data.as_ref();
        data.ok_or_else(|| Error::config(format!("stage '{}' needs a [data] table", self.stage.name)))
    }

    /// Class names by label.
    ///
    /// # Errors
    /// 65 or 74 if the list cannot be read or is empty.
    pub fn classes(&self) -> Result<Vec<String>> {
        let names = read_names(&self.dataset()?.classes)?;
        ensure!(!names.is_empty(), BadData, "data.classes: there is no class");
        Ok(names)
    }

    /// Names of the contexts; none if the data set has no groups.
    ///
    /// # Errors
    /// 65 or 74 if the list cannot be read.
    pub fn contexts(&self) -> Result<Vec<String>> {
        self.dataset()?.contexts.as_ref().map_or(Ok(Vec::new()), read_names)
    }

    /// The groups of the data set; none if it has no contexts.
    ///
    /// # Errors
    /// As [`Step::classes`].
    pub fn groups(&self) -> Result<Option<Groups>> {
        let (classes, contexts) = (self.classes()?, self.contexts()?);
        Ok((!contexts.is_empty()).then_some(Groups { classes, contexts }))
    }

    /// Shape of images and number of classes.
    ///
    /// # Errors
    /// As [`Step::classes`].
    pub fn data_shape(&self) -> Result<DataShape> {
        let data = self.dataset()?;
        Ok(DataShape {
            size: data.size.map(i64::from),
            channels: i64::from(data.channels),
            classes: self.classes()?.len() as i64,
        })
    }

    /// The table of a helper classifier.
    ///
    /// # Errors
    /// 78 if there is none of this name.
    pub fn helper_table(&self, name: &str) -> Result<&Helper> {
        let found = self.recipe().classifiers.get(name);
        found.ok_or_else(|| Error::config(format!("classifiers: there is no '{name}'")))
    }

    /// A helper classifier, loaded from the recipe's weights or from the stage that trained it.
    ///
    /// # Errors
    /// As [`Step::frozen`].
    pub fn helper(&self, name: &str) -> Result<Frozen> {
        let table = self.helper_table(name)?;
        let trained = || self.stage_path(&format!("train.{name}")).join("model.safetensors");
        let weights: PathBuf = table.weights.clone().unwrap_or_else(trained);
        self.frozen(&table.training.arch, &weights)
    }

    /// A trained classifier; in a rehearsal one that is not trained yet may be untrained.
    ///
    /// # Errors
    /// Those of [`Step::weights`] and [`Frozen::load`].
    pub fn frozen(&self, arch: &method::Arch, weights: &Path) -> Result<Frozen> {
        let shape = self.data_shape()?;
        match self.rehearses() && !weights.exists() {
            true => Frozen::untrained(arch, &shape),
            false => Frozen::load(arch, &weights.display().to_string(), &self.weights(weights)?, &shape),
        }
    }

    /// How a helper classifier looks at generated images: with the normalisation it was trained with.
    ///
    /// # Errors
    /// 78 if its augmentations cannot be read.
    pub fn view_of(&self, name: &str) -> Result<View> {
        let shape = self.data_shape()?;
        let augment: AugmentConfig = self.helper_table(name)?.training.augment.parse()?;
        let channels = shape.channels as usize;
        let (mean, std) = normalization(&augment, channels);
        View::new(shape.size, &mean, &std, Kind::Float, runtime::device())
    }
}

impl Step {
    /// What evaluation does to the images of a helper classifier: sizes and normalisation of its training.
    ///
    /// # Errors
    /// 78 if its augmentations cannot be read.
    pub fn evaluation_of(&self, name: &str) -> Result<AugmentConfig> {
        Ok(evaluation_ops(&self.helper_table(name)?.training.augment.parse()?))
    }
}

fn read_names(names: &Classes) -> Result<Vec<String>> {
    match names {
        Classes::Names(names) => Ok(names.clone()),
        Classes::File(path) => list::read_class_names(path),
    }
}

/// Mean and standard deviation of the `normalize` step of a list of augmentations; 0 and 1 if there is none.
fn normalization(augment: &AugmentConfig, channels: usize) -> (Vec<f64>, Vec<f64>) {
    let found = augment.ops.iter().find_map(|op| match op {
        Op::Normalize { mean, std } => Some((widened(mean), widened(std))),
        _ => None,
    });
    found.unwrap_or_else(|| (vec![0.; channels], vec![1.; channels]))
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// The part of a list of augmentations that evaluation applies too: sizes and normalisation, nothing random.
pub fn evaluation_ops(augment: &AugmentConfig) -> AugmentConfig {
    let fixed = |op: &&Op| matches!(op, Op::Normalize { .. } | Op::Resize { .. } | Op::CenterCrop { .. });
    AugmentConfig { ops: augment.ops.iter().filter(fixed).cloned().collect() }
}
