//! `equipoise-features`: features of a split.
//!
//! Images go through the network in fixed-shape batches, so a row does not depend on who computed it.

use crate::inputs::{self, Images};
use crate::nets::Frozen;
use crate::step::Step;
use equipoise_base::{Result, ensure};
use equipoise_data::{AugmentConfig, Loader, Request};
use equipoise_models::arch::Classifier;
use equipoise_nn::layers::Mode;
use equipoise_nn::weights::raw_bytes;
use equipoise_nn::{MemoryFormat, runtime};
use equipoise_shards::{FeatureMeta, Features, Matrix, tool_version};
use equipoise_workplan::Sample;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// Images that go through an extractor at once.
const BATCH: usize = equipoise_workplan::effort::FEATURE_BATCH as usize;
/// Batches that the loader prepares ahead of the network.
const PREFETCH: usize = 4;

#[derive(Clone, Debug, Deserialize)]
struct FeaturesParams {
    classifier: String,
    split: String,
}

/// Stores features of the guide over its training split.
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
    commit(step, &params.classifier, &params.split, &extractor, &images, &outputs.features)
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
    look(step, &network.classifier, augment, images, &|| step.passed("batches", 1))
}

/// [`evaluate`] with a classifier as it is; `passed` hears of every batch of this rank.
///
/// # Errors
/// As [`evaluate`].
pub fn look(
    step: &Step,
    classifier: &Classifier,
    augment: &AugmentConfig,
    images: &Images,
    passed: &dyn Fn(),
) -> Result<Outputs> {
    let shape = step.data_shape()?;
    let builder = crate::train::builder(step, augment, &shape, images, None)?;
    let count = images.set.labels.len();
    let batches = count.div_ceil(BATCH);
    let per_rank = batches.div_ceil(step.world());
    let own = (step.rank() * per_rank).min(batches)..((step.rank() + 1) * per_rank).min(batches);
    let requests: Vec<Request> = own.clone().map(|batch| request(images, batch)).collect();
    let loader = Loader::start(builder, requests, PREFETCH)?;
    let (mut features, mut logits) = (Vec::new(), Vec::new());
    for (batch, loaded) in own.zip(loader) {
        if step.should_stop() {
            break;
        }
        let keep = (count - batch * BATCH).min(BATCH) as i64;
        let (f, l) = one_batch(classifier, &loaded?.images, keep)?;
        features.push(f);
        logits.push(l);
        passed();
        step.comm_beat();
    }
    step.agree_to_go_on()?;
    let (dim, classes) = (classifier.feature_dim(), shape.classes);
    Ok(Outputs {
        features: gather(step, features, count as i64, dim)?,
        logits: gather(step, logits, count as i64, classes)?,
    })
}

/// The images of one batch, always of full shape: the last one is filled up with its last image.
fn request(images: &Images, batch: usize) -> Request {
    let labels = &images.set.labels;
    let rows = (batch * BATCH..(batch + 1) * BATCH).map(|row| row.min(labels.len() - 1));
    let sample = |row: usize| Sample { set: 0, index: row as u64, label: labels[row], key: 0 };
    Request { step: batch as u64, micro: 0, samples: rows.map(sample).collect() }
}

/// Features and logits of a batch, its first `keep` rows, on the host: it waits here while the loader goes on.
fn one_batch(classifier: &Classifier, images: &Tensor, keep: i64) -> Result<(Tensor, Tensor)> {
    let x = MemoryFormat::default().apply(&runtime::upload(images))?;
    Ok(tch::no_grad(|| {
        let features = classifier.features(&x, Mode::Eval);
        let logits = classifier.head(&features);
        let rows = |all: Tensor| all.narrow(0, 0, keep).to_device(Device::Cpu);
        (rows(features), rows(logits))
    }))
}

/// The rows of all ranks in rank order, [rows, columns] float32 on the CPU.
pub(crate) fn gather(step: &Step, parts: Vec<Tensor>, rows: i64, columns: i64) -> Result<Tensor> {
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

/// Values of a tensor in float32, row by row.
pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_kind(Kind::Float).contiguous().view([-1]);
    let mut values = vec![0f32; flat.numel()];
    let count = values.len();
    flat.copy_data(&mut values, count);
    values
}

/// Values of a tensor in float64, row by row.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_kind(Kind::Double).to_device(Device::Cpu).contiguous().view([-1]);
    let mut values = vec![0f64; flat.numel()];
    let count = values.len();
    flat.copy_data(&mut values, count);
    values
}
