//! `equipoise-features`: features of a split, and the class statistics that hardness needs.
//!
//! Images go through the network in fixed-shape batches, so a row does not depend on who computed it.

use crate::inputs::{self, Images};
use crate::nets::Frozen;
use crate::step::Step;
use equipoise_base::{Error, Result, ensure};
use equipoise_data::{AugmentConfig, BatchBuilder};
use equipoise_diffusion::criterion::ClassStatistics;
use equipoise_nn::layers::Mode;
use equipoise_nn::weights::raw_bytes;
use equipoise_nn::{MemoryFormat, runtime};
use equipoise_numerics::hardness::Hardness;
use equipoise_numerics::stats::{ClassMoments, Spread as Pooling};
use equipoise_shards::{FeatureMeta, Features, Matrix, Spread, Statistics, StatisticsMeta, tool_version};
use equipoise_workplan::Sample;
use serde::Deserialize;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Images that go through an extractor at once.
const BATCH: usize = 64;
/// Added to the diagonal of covariances: classes with few images have singular ones (oracle kind `stats`).
const SHRINKAGE: f64 = 1e-2;

#[derive(Clone, Debug, Deserialize)]
struct FeaturesParams {
    classifier: String,
    split: String,
}

/// Stores features and pooled class statistics of the guide over its training split.
///
/// # Errors
/// 65 when an input is damaged.
pub fn run(step: &Step) -> Result<()> {
    let params: FeaturesParams = step.params()?;
    let images = inputs::split(step, &params.split)?;
    let extractor = step.helper(&params.classifier)?;
    let augment = step.evaluation_of(&params.classifier)?;
    let outputs = evaluate(step, &extractor, &augment, &images)?;
    if !step.is_root() {
        return Ok(());
    }
    commit(step, &params.classifier, &params.split, &extractor, &images, &outputs.features)?;
    let labels = labels_of(&images);
    let classes = step.classes()?.len();
    let dim = extractor.classifier.feature_dim();
    // One covariance for all classes: with a handful of images a class's own has rank 4 (facts of seed 002).
    let mut moments = ClassMoments::new(classes, dim, Pooling::Pooled, Device::Cpu);
    moments.update(&outputs.features.to_kind(Kind::Double), &labels)?;
    let hardness = Hardness::new(&moments, SHRINKAGE)?;
    let table = Statistics {
        meta: StatisticsMeta {
            identity: step.identity().to_string(),
            source: params.classifier.clone(),
            split: params.split.clone(),
            eps: SHRINKAGE,
            tool_version: tool_version(),
        },
        dim: dim as usize,
        class: (0..classes as i64).collect(),
        count: moments.count().to_vec(),
        mean: values(hardness.mean()),
        spread: Spread::Precision {
            inverse: values(hardness.precision()),
            logdet: values(hardness.logdet()),
        },
    };
    step.commit(&step.dir().join("statistics.h5"), &table.write()?)
}

/// Normal distributions of a guide's features, by class.
pub struct ClassTable {
    statistics: Statistics,
}

impl ClassTable {
    /// What the `features` stage of a guide stored.
    ///
    /// # Errors
    /// 65 when the file is damaged.
    pub fn read(step: &Step, guide: &str) -> Result<Self> {
        let path: PathBuf = step.stage_path(&format!("features.{guide}")).join("statistics.h5");
        Ok(Self { statistics: Statistics::read(&path)? })
    }

    /// One entry per class; a pooled covariance is shared by all.
    ///
    /// # Errors
    /// 65 when the file holds covariances that were not inverted.
    pub fn tensors(&self) -> Result<Vec<ClassStatistics>> {
        let (dim, device) = (self.statistics.dim as i64, runtime::device());
        let Spread::Precision { inverse: cov_inv, logdet } = &self.statistics.spread else {
            return Err(Error::data("class statistics: the covariances are not inverted"));
        };
        let tensor = |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float).to_device(device);
        let size = (dim * dim) as usize;
        let slots = cov_inv.len() / size.max(1);
        ensure!(slots > 0 && logdet.len() == slots, BadData, "class statistics: {slots} covariances");
        let entry = |class: usize| {
            let slot = class.min(slots - 1);
            ClassStatistics {
                mu: tensor(&self.statistics.mean[class * dim as usize..][..dim as usize]).view([1, dim]),
                cov_inv: tensor(&cov_inv[slot * size..][..size]).view([1, dim, dim]),
                logdet: tensor(&logdet[slot..=slot]),
            }
        };
        Ok((0..self.statistics.class.len()).map(entry).collect())
    }
}

impl ClassTable {
    /// Hardness of `features` [n, d] for their classes (seed 002 Eq. 5), [n].
    ///
    /// # Errors
    /// As [`ClassTable::tensors`].
    pub fn hardness(&self, features: &Tensor, labels: &[u32]) -> Result<Tensor> {
        let classes = self.tensors()?;
        let constant = self.statistics.dim as f64 * std::f64::consts::TAU.ln();
        let of_row = |(row, &label): (usize, &u32)| {
            let class = &classes[label as usize];
            let deviation = features.get(row as i64).unsqueeze(0) - &class.mu;
            let distance = deviation.matmul(&class.cov_inv.squeeze_dim(0)).matmul(&deviation.transpose(0, 1));
            (distance.view([1]) + &class.logdet + constant) * 0.5
        };
        Ok(Tensor::cat(&labels.iter().enumerate().map(of_row).collect::<Vec<_>>(), 0))
    }
}

/// What a classifier says about images, in their order.
pub struct Outputs {
    /// Features [n, d], float32 on the CPU.
    pub features: Tensor,
    /// Logits [n, classes].
    pub logits: Tensor,
}

/// Sends images through a frozen classifier; ranks share the batches, and all get all rows.
///
/// # Errors
/// Those of the loader and of the transport; 75 on all ranks once one was asked to stop.
pub fn evaluate(step: &Step, network: &Frozen, augment: &AugmentConfig, images: &Images) -> Result<Outputs> {
    let shape = step.data_shape()?;
    let builder = crate::train::builder(step, augment, &shape, images, None)?;
    let count = images.set.labels.len();
    let batches = count.div_ceil(BATCH);
    let per_rank = batches.div_ceil(step.world());
    let own = (step.rank() * per_rank).min(batches)..((step.rank() + 1) * per_rank).min(batches);
    let (mut features, mut logits) = (Vec::new(), Vec::new());
    for batch in own {
        if step.should_stop() {
            break;
        }
        let (f, l) = one_batch(network, &builder, images, batch)?;
        features.push(f);
        logits.push(l);
        step.comm_beat();
    }
    step.agree_to_go_on()?;
    let (dim, classes) = (network.classifier.feature_dim(), shape.classes);
    Ok(Outputs {
        features: gather(step, features, count as i64, dim)?,
        logits: gather(step, logits, count as i64, classes)?,
    })
}

/// Rows of one batch, computed at full shape: the last one is filled up with its last image and cut.
fn one_batch(
    network: &Frozen,
    builder: &BatchBuilder,
    images: &Images,
    batch: usize,
) -> Result<(Tensor, Tensor)> {
    let count = images.set.labels.len();
    let rows = (batch * BATCH..(batch + 1) * BATCH).map(|row| row.min(count - 1));
    let samples: Vec<Sample> =
        rows.map(|row| Sample { set: 0, index: row as u64, label: images.set.labels[row], key: 0 }).collect();
    let (x, _) = builder.tensors(&samples, &mut Vec::new())?;
    let x = MemoryFormat::default().apply(&x.to_device(runtime::device()))?;
    let keep = (count - batch * BATCH).min(BATCH) as i64;
    Ok(tch::no_grad(|| {
        let features = network.classifier.features(&x, Mode::Eval);
        let logits = network.classifier.head(&features);
        (features.narrow(0, 0, keep), logits.narrow(0, 0, keep))
    }))
}

fn gather(step: &Step, parts: Vec<Tensor>, rows: i64, columns: i64) -> Result<Tensor> {
    let own: Vec<u8> = parts.iter().flat_map(|part| raw_bytes(&part.to_kind(Kind::Float))).collect();
    let bytes = step.comm().all_gather(&own)?.concat();
    ensure!(
        bytes.len() as i64 == rows * columns * 4,
        Bug,
        "gathered {} bytes of {rows} x {columns}",
        bytes.len()
    );
    Ok(Tensor::from_data_size(&bytes, &[rows, columns], Kind::Float))
}

/// Writes a feature file.
///
/// # Errors
/// 74 if it cannot be written.
pub fn commit(
    step: &Step,
    name: &str,
    split: &str,
    extractor: &Frozen,
    images: &Images,
    features: &Tensor,
) -> Result<()> {
    let meta = FeatureMeta {
        identity: step.identity().to_string(),
        extractor: name.to_string(),
        weight_hash: extractor.hash.to_string(),
        layer: "input of the head".into(),
        preprocessing: "as in training, without augmentation".into(),
        split: split.to_string(),
        tool_version: tool_version(),
    };
    let count = images.set.labels.len();
    let file = Features {
        meta,
        features: Matrix::F32(floats(features)),
        dim: features.size()[1] as usize,
        label: images.set.labels.iter().map(|&label| i64::from(label)).collect(),
        group: vec![-1; count],
        index: images.index.clone(),
        source_xxh3: images.hashes.clone(),
    };
    step.commit(&step.features_path(name, split)?, &file.write()?)
}

/// Labels as a tensor [n] int64.
pub fn labels_of(images: &Images) -> Tensor {
    let labels: Vec<i64> = images.set.labels.iter().map(|&label| i64::from(label)).collect();
    Tensor::from_slice(&labels)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_kind(Kind::Float).contiguous().view([-1]);
    let mut values = vec![0f32; flat.numel()];
    let count = values.len();
    flat.copy_data(&mut values, count);
    values
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_kind(Kind::Double).to_device(Device::Cpu).contiguous().view([-1]);
    let mut values = vec![0f64; flat.numel()];
    let count = values.len();
    flat.copy_data(&mut values, count);
    values
}
