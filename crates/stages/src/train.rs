//! `equipoise-train`: classifiers that serve others, and the arms of a comparison.

use crate::features::{labels_of, look};
use crate::inputs::{self, Images};
use crate::nets::DataShape;
use crate::precision;
use crate::search;
use crate::step::Step;
use crate::training::{self, Ended, Objective, TrainingConfig};
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_classify::{Counts, Loss, LossConfig, Progress};
use equipoise_config::pipeline::{Candidate, Settings};
use equipoise_config::{Kind as StageKind, method, recipe};
use equipoise_data::{AugmentConfig, BatchBuilder, MicroBatch, Shape};
use equipoise_metrics::Confusion;
use equipoise_models::arch::Classifier;
use equipoise_nn::layers::{BatchNorm2d, Mode};
use equipoise_nn::{MemoryFormat, Module as _, Params, Precision, runtime};
use equipoise_workplan::{OrderConfig, Pool, TrainingOrder};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use tch::Tensor;

/// Order of images and of the kernels that they meet.
const FORMAT: MemoryFormat = MemoryFormat::ChannelsLast;

/// Parameters of the stage: `[classifiers.NAME]` or `[arms.NAME]`, complete.
#[derive(Clone, Debug, Deserialize)]
struct TrainParams {
    split: String,
    arch: method::Arch,
    init_from: Option<PathBuf>,
    loss: method::Loss,
    optimizer: method::Optimizer,
    schedule: method::LearningRate,
    augment: method::Augment,
    sampling: method::Sampling,
    steps: u64,
    global_batch: u64,
    micro_batch: u64,
    precision: recipe::Precision,
    validate: Option<recipe::Validate>,
    log_every: u64,
    skip_non_finite: u64,
    seed: u64,
    set: Option<String>,
    set_seed: Option<u64>,
    set_images: Option<u64>,
    extra_split: Option<String>,
    settings: Option<Settings>,
    #[serde(default)]
    candidates: Vec<Candidate>,
}

impl TrainParams {
    /// Those of the stage, with what is to be tried or was found best in place of its own. Rehearsals keep the stage's own:
    /// plans count with them.
    fn of(step: &Step) -> Result<Self> {
        let mut params: Self = step.params()?;
        if step.rehearses() {
            return Ok(params);
        }
        let settings = match params.settings.take() {
            Some(settings) => Some(settings),
            None => search::best(step, &params.candidates)?,
        };
        if let Some(Settings { lr, global_batch, micro_batch, steps, validate_every }) = settings {
            params.optimizer.0["lr"] = lr.into();
            (params.global_batch, params.micro_batch, params.steps) = (global_batch, micro_batch, steps);
            params.validate.iter_mut().for_each(|validate| validate.every_steps = validate_every);
        }
        Ok(params)
    }
}

/// Trains one classifier.
///
/// # Errors
/// Those of [`training::train`]; 65 when an input is damaged.
pub fn run(step: &Step) -> Result<Ended> {
    let params = TrainParams::of(step)?;
    let real = inputs::split(step, &params.split)?;
    let extra = match (&params.set, params.set_seed, &params.extra_split) {
        (Some(set), Some(seed), _) => Some(inputs::synthetic(step, set, seed)?),
        (_, _, Some(split)) => Some(inputs::split(step, split)?),
        _ => None,
    };
    let (shape, counts) = (step.data_shape()?, class_counts(&real, step.classes()?.len()));
    let seed = Key::new(step.recipe().run.seed, "train").class(kind_number(step)).index(params.seed).hash();
    let store = Params::new(seed, tch::Kind::Float, runtime::device()).with_kernels(FORMAT);
    let classifier = Classifier::new(&params.arch.parse()?, store, shape.channels, shape.classes)?;
    if let Some(file) = &params.init_from {
        classifier.load_backbone(&file.display().to_string(), &step.weights(file)?)?;
    }
    let sampling: OrderConfig = params.sampling.parse()?;
    let loss: LossConfig = params.loss.parse()?;
    let added = extra.as_ref().map(|extra| added(extra, params.set_images));
    let seen = mixture(&sampling, &counts, added.as_ref().map(|pool| counts_of(&pool.labels, counts.len())));
    let validation = params.validate.as_ref().map(|validate| Validation::new(step, &params, validate));
    let objective = Recognition {
        validation: validation.transpose()?,
        loss: Loss::new(&loss, &Counts::new(&counts).with_mixture(&seen)?)?,
        classifier,
        precision: precision::compute(params.precision)?,
    };
    let order = order(&params, &sampling, seed, &real, added)?;
    let builder = builder(step, &params.augment.parse()?, &shape, &real, extra.as_ref())?;
    let config = TrainingConfig {
        steps: params.steps,
        optimizer: params.optimizer.parse()?,
        schedule: params.schedule.parse()?,
        ema: None,
        validate_every: params.validate.as_ref().map(|validate| validate.every_steps),
        log_every: params.log_every,
        skip_non_finite: params.skip_non_finite,
        stored: tch::Kind::Float,
    };
    training::train(step, &objective, &config, order, builder)
}

/// Guides and arms of one seed must not start from the same weights by accident.
fn kind_number(step: &Step) -> u64 {
    u64::from(step.stage.kind == StageKind::Arm)
}

/// Images of each class.
pub fn class_counts(images: &Images, classes: usize) -> Vec<u64> {
    counts_of(&images.set.labels, classes)
}

fn counts_of(labels: &[u32], classes: usize) -> Vec<u64> {
    let mut counts = vec![0; classes];
    for &label in labels {
        counts[label as usize] += 1;
    }
    counts
}

/// What is trained on beside the real images: of each class, those with an index below `first`.
fn added(extra: &Images, first: Option<u64>) -> Pool {
    let all = Pool::of_set(1, &extra.set.labels);
    let Some(first) = first else { return all };
    let taken = (0..all.len()).filter(|&at| extra.index[at] < first);
    let (items, labels) = taken.map(|at| (all.items[at], all.labels[at])).unzip();
    Pool { items, labels }
}

/// The class frequencies that training sees, scaled to the number of real images: the prior of the mixture.
fn mixture(sampling: &OrderConfig, real: &[u64], extra: Option<Vec<u64>>) -> Vec<f64> {
    let total = |counts: &[u64]| counts.iter().sum::<u64>().max(1) as f64;
    let Some(extra) = extra else { return real.iter().map(|&n| n as f64).collect() };
    // Without fixed parts an image is an image, wherever it comes from.
    let real_part = match sampling {
        OrderConfig::Mix { real_fraction, .. } => *real_fraction,
        _ => total(real) / (total(real) + total(&extra)),
    };
    let (n, m) = (total(real), total(&extra));
    let seen = |(&r, &e): (&u64, &u64)| n * (real_part * r as f64 / n + (1. - real_part) * e as f64 / m);
    real.iter().zip(&extra).map(seen).collect()
}

fn order(
    params: &TrainParams,
    config: &OrderConfig,
    seed: u64,
    real: &Images,
    added: Option<Pool>,
) -> Result<TrainingOrder> {
    let real = Pool::of_set(0, &real.set.labels);
    let added = added.unwrap_or_default();
    TrainingOrder::new(seed, config, params.global_batch, params.micro_batch, real, added)
}

/// The loader's builder over the real images and what is added to them.
pub fn builder(
    step: &Step,
    augment: &AugmentConfig,
    shape: &DataShape,
    real: &Images,
    extra: Option<&Images>,
) -> Result<BatchBuilder> {
    let images = std::iter::once(real).chain(extra);
    let sets = images.map(|images| Arc::clone(&images.set) as Arc<dyn equipoise_data::ImageSource>).collect();
    // What is stored may be larger than what is trained on.
    let [height, width] = augment.output_size(shape.size.map(|side| side as usize));
    let shape = Shape { channels: shape.channels as usize, height, width };
    let builder = BatchBuilder::new(sets, augment.clone(), shape, step.recipe().run.threads as usize)?;
    Ok(builder.placed_by(runtime::pinned))
}

/// A classifier with its loss.
struct Recognition {
    classifier: Classifier,
    loss: Loss,
    precision: Precision,
    validation: Option<Validation>,
}

/// A split whose accuracy decides which weights are kept, and how its images are looked at.
struct Validation {
    images: Images,
    augment: AugmentConfig,
}

impl Validation {
    fn new(step: &Step, params: &TrainParams, validate: &recipe::Validate) -> Result<Self> {
        let augment = crate::data::evaluation_ops(&params.augment.parse()?);
        Ok(Self { images: inputs::split(step, &validate.split)?, augment })
    }
}

impl Objective for Recognition {
    fn params(&self) -> &Params {
        self.classifier.params()
    }

    fn batch_norms(&self) -> Vec<&BatchNorm2d> {
        self.classifier.batch_norms()
    }

    fn score(&self, step: &Step) -> Result<f64> {
        let validation =
            self.validation.as_ref().ok_or_else(|| Error::new(ExitCode::Bug, "no split to look at"))?;
        let outputs = look(step, &self.classifier, &validation.augment, &validation.images, &|| ())?;
        let labels = labels_of(&validation.images);
        Ok(Confusion::of_logits(&outputs.logits.to_kind(tch::Kind::Double), &labels)?.accuracy())
    }

    fn loss(&self, micro: &MicroBatch) -> Result<Tensor> {
        ensure!(micro.labels.numel() > 0, Bug, "an empty micro-batch");
        let device = runtime::device();
        let images = FORMAT.apply(&runtime::upload(&micro.images))?;
        let logits = self.precision.scope(device, || self.classifier.forward(&images, Mode::Train))?;
        let progress = Progress { epoch: 0, step: micro.request.step };
        Ok(self.loss.forward(&logits, &runtime::upload(&micro.labels), progress))
    }
}
