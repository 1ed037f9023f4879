//! `equipoise-features`, stage `statistics`: normal distributions of a guide's features by class, for hardness.
//!
//! The file keeps covariances as they are; shrinkage and inversion happen when it is read, so that sets with other
//! shrinkage share it.

use crate::features::values;
use crate::nets::Frozen;
use crate::step::Step;
use equipoise_base::{Error, Result, bail, ensure};
use equipoise_diffusion::criterion::{ClassStatistics, Covariance, HardnessConfig};
use equipoise_nn::runtime;
use equipoise_numerics::hardness::Hardness;
use equipoise_numerics::stats::{ClassMoments, Spread as Pooling};
use equipoise_shards::{Features, Matrix, Spread, Statistics, StatisticsMeta, tool_version};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Clone, Debug, Deserialize)]
struct StatisticsParams {
    classifier: String,
    split: String,
    covariance: Covariance,
}

/// Name of the stage that makes the statistics of a guide.
fn stage_name(guide: &str, covariance: Covariance) -> String {
    let covariance = match covariance {
        Covariance::Pooled => "pooled",
        Covariance::PerClass => "per_class",
    };
    format!("statistics-{covariance}.{guide}")
}

/// Means and covariances of the features that a guide's `features` stage has stored.
///
/// # Errors
/// 65 when the feature file is damaged or a class has no image.
pub fn run(step: &Step) -> Result<()> {
    let params: StatisticsParams = step.params()?;
    if !step.is_root() {
        return Ok(());
    }
    let file = Features::read(&step.features_path(&params.classifier, &params.split)?)?;
    let classes = step.classes()?;
    let Matrix::F32(rows) = &file.features else {
        bail!(BadData, "features of {}: not in float32", params.classifier);
    };
    let rows = Tensor::from_slice(rows).view([-1, file.dim as i64]).to_kind(Kind::Double);
    let pooling = match params.covariance {
        Covariance::Pooled => Pooling::Pooled,
        Covariance::PerClass => Pooling::PerClass,
    };
    let mut moments = ClassMoments::new(classes.len(), file.dim as i64, pooling, Device::Cpu);
    moments.update(&rows, &Tensor::from_slice(&file.label))?;
    if let Some(empty) = moments.count().iter().position(|&count| count == 0) {
        bail!(
            BadData,
            "split '{}' has no image of class '{}': hardness has no distribution to compare it with",
            params.split,
            classes[empty]
        );
    }
    let covariances = (0..moments.slots()).flat_map(|slot| values(&moments.covariance(slot))).collect();
    let table = Statistics {
        meta: StatisticsMeta {
            identity: step.identity().to_string(),
            source: params.classifier,
            split: params.split,
            eps: 0.,
            tool_version: tool_version(),
        },
        dim: file.dim,
        class: (0..classes.len() as i64).collect(),
        count: moments.count().to_vec(),
        mean: values(moments.mean()),
        spread: Spread::Covariance(covariances),
    };
    step.commit(&step.dir().join("statistics.h5"), &table.write()?)
}

/// Normal distributions of a guide's features by class, ready to score on the device of this rank.
pub struct ClassTable {
    hardness: Hardness,
}

impl ClassTable {
    /// What the `statistics` stage of a guide stored, shrunk and inverted.
    ///
    /// # Errors
    /// 65 when the file is damaged; 71 when a covariance stays singular.
    pub fn read(step: &Step, guide: &str, config: HardnessConfig) -> Result<Self> {
        let path = step.stage_path(&stage_name(guide, config.covariance)).join("statistics.h5");
        let file = Statistics::read(&path)?;
        let dim = file.dim as i64;
        let Spread::Covariance(covariances) = &file.spread else {
            return Err(Error::data(format!("{}: has no covariances", path.display())));
        };
        ensure!(dim > 0, BadData, "{}: features of dimension 0", path.display());
        let mean = Tensor::from_slice(&file.mean).view([-1, dim]);
        let covariances = Tensor::from_slice(covariances).view([-1, dim, dim]);
        let hardness = Hardness::of_covariances(&mean, &covariances, config.shrinkage)?;
        Ok(Self { hardness: hardness.to(Kind::Float, runtime::device()) })
    }

    /// [`ClassTable::read`]; in a rehearsal, standard normals if no stage has stored anything yet.
    ///
    /// # Errors
    /// As [`ClassTable::read`].
    pub fn of_guide(step: &Step, name: &str, guide: &Frozen, config: HardnessConfig) -> Result<Self> {
        let path = step.stage_path(&stage_name(name, config.covariance)).join("statistics.h5");
        if !step.rehearses() || path.exists() {
            return Self::read(step, name, config);
        }
        let (classes, dim) = (step.classes()?.len() as i64, guide.classifier.feature_dim());
        let slots = if config.covariance == Covariance::Pooled { 1 } else { classes };
        let options = (Kind::Double, Device::Cpu);
        let covariances = Tensor::eye(dim, options).unsqueeze(0).expand([slots, -1, -1], false).contiguous();
        let hardness = Hardness::of_covariances(
            &Tensor::zeros([classes, dim], options),
            &covariances,
            config.shrinkage,
        )?;
        Ok(Self { hardness: hardness.to(Kind::Float, runtime::device()) })
    }

    /// The distribution of one class, shared by a whole batch of it.
    pub fn of_class(&self, class: u32) -> ClassStatistics {
        let (precision, logdet) = (self.hardness.precision(), self.hardness.logdet());
        let slot = i64::from(class).min(precision.size()[0] - 1);
        ClassStatistics {
            mu: self.hardness.mean().narrow(0, i64::from(class), 1),
            cov_inv: precision.narrow(0, slot, 1),
            logdet: logdet.narrow(0, slot, 1),
        }
    }

    /// Hardness of `features` [n, d] as members of the classes `labels` [n] (seed 002 Eq. 5), [n].
    ///
    /// # Errors
    /// 65 when shapes do not fit.
    pub fn hardness(&self, features: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let device = self.hardness.mean().device();
        self.hardness.value(&features.to_device(device), &labels.to_device(device))
    }
}
