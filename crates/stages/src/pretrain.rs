//! `equipoise-train`: the diffusion generator.

use crate::inputs;
use crate::nets::{Generator, GeneratorConfig};
use crate::precision;
use crate::step::Step;
use crate::training::{self, Ended, Objective, TrainingConfig};
use equipoise_base::rng::Key;
use equipoise_base::{Error, Result, bail};
use equipoise_config::recipe::DiffusionTraining;
use equipoise_data::{AugmentConfig, MicroBatch};
use equipoise_diffusion::train::{Batch, DiffusionLoss, DiffusionTrainConfig};
use equipoise_nn::layers::BatchNorm2d;
use equipoise_nn::{MemoryFormat, Params, Precision, runtime};
use equipoise_workplan::{Pool, TrainingOrder};
use tch::{Kind, Tensor};

/// `[diffusion]`, complete.
#[derive(Clone, Debug, serde::Deserialize)]
struct PretrainParams {
    model: equipoise_config::method::DiffusionModel,
    schedule: equipoise_config::method::NoiseSchedule,
    prediction: equipoise_config::recipe::Prediction,
    train: DiffusionTraining,
}

impl PretrainParams {
    fn network(&self) -> GeneratorConfig {
        let (model, schedule) = (self.model.clone(), self.schedule.clone());
        GeneratorConfig { weights: None, folder: None, model, schedule, prediction: self.prediction }
    }
}

/// Trains the generator of `[diffusion]` on `[diffusion.train]`.
///
/// # Errors
/// Those of [`training::train`]; 78 when the recipe names no split.
pub fn run(step: &Step) -> Result<Ended> {
    let params: PretrainParams = step.params()?;
    let config = &params.train;
    let split = config
        .split
        .as_ref()
        .ok_or_else(|| Error::config("diffusion.train.split: name the split to train on"))?;
    let images = inputs::split(step, split)?;
    let shape = step.data_shape()?;
    let seed = Key::new(step.recipe().run.seed, "diffusion").index(config.seed).hash();
    let generator =
        Generator::new(&params.network(), Params::new(seed, Kind::Float, runtime::device()), &shape)?;
    let loss = DiffusionTrainConfig {
        prediction: generator.prediction,
        learn_sigma: generator.learn_sigma,
        class_dropout: config.class_dropout,
    };
    let denoising = Denoising {
        loss: DiffusionLoss::new(&generator.schedule, &loss, shape.classes)?,
        generator,
        seed,
        class_dropout: config.class_dropout,
        precision: precision::compute(config.precision)?,
    };
    let order: equipoise_workplan::OrderConfig = config.sampling.parse()?;
    let real = Pool::of_set(0, &images.set.labels);
    let order =
        TrainingOrder::new(seed, &order, config.global_batch, config.micro_batch, real, Pool::default())?;
    let augment: AugmentConfig = config.augment.parse()?;
    let builder = crate::train::builder(step, &augment, &shape, &images, None)?;
    let training = TrainingConfig {
        steps: config.steps,
        optimizer: config.optimizer.parse()?,
        schedule: config.schedule.parse()?,
        ema: Some(config.ema.parse()?),
        validate_every: None,
        log_every: config.log_every,
        skip_non_finite: config.skip_non_finite,
        stored: precision::stored(config.stored),
    };
    training::train(step, &denoising, &training, order, builder)
}

/// The generator with its training objective; time, noise and dropped labels are keyed by the visit of the image.
struct Denoising {
    generator: Generator,
    loss: DiffusionLoss,
    seed: u64,
    class_dropout: f64,
    precision: Precision,
}

impl Denoising {
    /// Times [N], noise like `images`, and which labels are dropped [N].
    fn draw(&self, micro: &MicroBatch, images: &Tensor) -> (Tensor, Tensor, Tensor) {
        let count = micro.request.samples.len();
        let mut noise = vec![0f32; images.numel()];
        let (mut times, mut dropped) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (sample, values) in micro.request.samples.iter().zip(noise.chunks_mut(images.numel() / count)) {
            let key = |purpose: &'static str| Key::new(self.seed, purpose).index(sample.key).stream();
            times.push(key("time").below(self.loss.timesteps() as u64) as i64);
            dropped.push(key("class-dropout").bernoulli(self.class_dropout));
            key("noise/train").fill_normal(values);
        }
        (Tensor::from_slice(&times), Tensor::from_slice(&noise).view_as(images), Tensor::from_slice(&dropped))
    }
}

impl Objective for Denoising {
    fn params(&self) -> &Params {
        &self.generator.params
    }

    fn batch_norms(&self) -> Vec<&BatchNorm2d> {
        Vec::new()
    }

    fn score(&self, _: &Step) -> Result<f64> {
        bail!(Bug, "a generator has no accuracy")
    }

    fn loss(&self, micro: &MicroBatch) -> Result<Tensor> {
        let device = runtime::device();
        // Loaded images lie in [0, 1], the generator's in [-1, 1].
        let images = runtime::upload(&micro.images) * 2. - 1.;
        let (times, noise, dropped) = self.draw(micro, &images);
        let images = MemoryFormat::Contiguous.apply(&images)?;
        let batch = Batch {
            images: &images,
            labels: Some(&runtime::upload(&micro.labels)),
            dropped: Some(&runtime::upload(&dropped)),
            t: &runtime::upload(&times),
            noise: &runtime::upload(&noise),
        };
        self.precision.scope(device, || self.loss.loss(&self.generator.unet, &batch))?
    }
}
