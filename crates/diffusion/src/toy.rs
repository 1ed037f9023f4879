//! The 2-D demonstration of feedback guidance (Askari Hemmat et al., Fig. 6): two classes, each with a mode of 90 %
//! and a mode of 10 % of its points.
//!
//! A linear classifier, stopped early, separates the large modes and cuts through the small ones. Entropy guidance
//! then draws samples of a class-conditional diffusion towards the small modes, where real data are missing.
//! Everything is the code that images run through: points are images of 2 channels and 1 pixel.

use crate::criterion::{Criterion, Guide, Targets};
use crate::ddim::{Ddim, DdimConfig, Spacing};
use crate::feedback::{Feedback, FeedbackConfig, GradientPath, LookConfig, Update};
use crate::guidance::{ClassConditional, DenoisingNetwork};
use crate::prediction::Prediction;
use crate::sampler::{Sampler, unobserved};
use crate::schedule::{BetaSchedule, DiffusionScheduleConfig, Schedule};
use crate::train::{Batch, DiffusionLoss, DiffusionTrainConfig};
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode, Result, ResultExt};
use equipoise_nn::layers::{Embedding, Linear};
use equipoise_nn::optim::{AdamWConfig, SgdConfig};
use equipoise_nn::{FlatParams, OptimizerConfig, Params, Scope};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Centres of the large and the small mode of each class.
const MODES: [[[f64; 2]; 2]; 2] = [[[-1., 0.], [0.3, 0.7]], [[1., 0.], [-0.3, -0.7]]];
/// Standard deviation of every mode.
const SPREAD: f64 = 0.15;
/// Share of the small mode.
const MINORITY: f64 = 0.1;
/// Real points and samples of each class.
const POINTS: usize = 1000;
/// Distance from a centre, in standard deviations, up to which a sample counts as valid.
const VALID: f64 = 4.;

/// Steps of the diffusion's training.
const STEPS: u64 = 2500;
/// Batch and rate of the diffusion's training.
const TRAIN: (usize, f64) = (256, 2e-3);
/// Steps and rate of a linear classifier, the guide as well as those that are judged: stopped early.
const LINEAR: (u64, f64) = (60, 0.1);
/// Strength of guidance through the network and with the noise estimate held constant.
const OMEGA: [f64; 2] = [8., 0.15];

/// A labelled point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToyPoint {
    /// Horizontal position.
    pub x: f32,
    /// Vertical position.
    pub y: f32,
    /// Class, 0 or 1.
    pub label: i64,
}

/// Samples of one kind and what they are worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToyArm {
    /// `unguided`, `through` or `detached`.
    pub name: String,
    /// Share of samples whose nearest centre of their class is that of the small mode.
    pub minority_share: f64,
    /// Share of samples near a centre of their class.
    pub validity: f64,
    /// Accuracy on new points of the small modes, of a linear classifier trained on real points and these samples.
    pub linear_minority_accuracy: f64,
    /// The samples.
    pub points: Vec<ToyPoint>,
}

/// One run of the demonstration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Toy {
    /// Seed that decides everything.
    pub seed: u64,
    /// The real points.
    pub real: Vec<ToyPoint>,
    /// Unguided, guided through the network, guided with the noise estimate held constant.
    pub arms: Vec<ToyArm>,
}

/// Runs the demonstration; some seconds on one thread.
///
/// # Errors
/// None but bugs: the configuration is fixed.
pub fn run(seed: u64) -> Result<Toy> {
    run_steps(seed, STEPS)
}

/// [`run`] with a diffusion trained for `steps`.
fn run_steps(seed: u64, steps: u64) -> Result<Toy> {
    let real = Cloud::real(seed, "toy/real", MINORITY);
    let test = Cloud::real(seed, "toy/test", 1.);
    let generator = train_generator(seed, &real, steps)?;
    let guide = train_linear(&real)?;
    let guided = [
        ("unguided", None),
        ("through", Some((GradientPath::Through, OMEGA[0]))),
        ("detached", Some((GradientPath::Detached, OMEGA[1]))),
    ];
    let arms = guided
        .into_iter()
        .map(|(name, guidance)| {
            let samples = sample(seed, &generator, &guide, guidance)?;
            let judged = train_linear(&real.join(&samples))?;
            Ok(ToyArm {
                name: name.to_string(),
                minority_share: samples.minority_share(),
                validity: samples.validity(),
                linear_minority_accuracy: judged.accuracy(&test),
                points: samples.points()?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Toy { seed, real: real.points()?, arms })
}

/// Points [N, 2, 1, 1] with labels [N].
struct Cloud {
    points: Tensor,
    labels: Tensor,
}

impl Cloud {
    /// New points of both classes, `minority` of them from the small mode.
    fn real(seed: u64, purpose: &str, minority: f64) -> Self {
        let small = (POINTS as f64 * minority).round() as usize;
        let mut values = Vec::with_capacity(4 * POINTS);
        for (class, modes) in MODES.iter().enumerate() {
            for index in 0..POINTS {
                let mut noise = Key::new(seed, purpose).class(class as u64).index(index as u64).stream();
                let center = modes[usize::from(index < small)];
                values.extend(center.map(|at| (at + SPREAD * noise.normal()) as f32));
            }
        }
        Self { points: Tensor::from_slice(&values).view([-1, 2, 1, 1]), labels: class_labels() }
    }

    fn join(&self, other: &Cloud) -> Cloud {
        let both = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], 0);
        Cloud { points: both(&self.points, &other.points), labels: both(&self.labels, &other.labels) }
    }

    /// Squared distance to the two centres of the own class [N, 2].
    fn distances(&self) -> Tensor {
        let centers: Vec<f32> = MODES.iter().flatten().flatten().map(|&at| at as f32).collect();
        let own = Tensor::from_slice(&centers).view([2, 2, 2]).index_select(0, &self.labels);
        (self.points.view([-1, 1, 2]) - own).square().sum_dim_intlist(-1, false, None::<Kind>)
    }

    fn minority_share(&self) -> f64 {
        let distances = self.distances();
        share(&distances.select(1, 1).less_tensor(&distances.select(1, 0)))
    }

    fn validity(&self) -> f64 {
        share(&self.distances().amin(1, false).less((VALID * SPREAD).powi(2)))
    }

    fn points(&self) -> Result<Vec<ToyPoint>> {
        let bug = |error: tch::TchError| Error::new(ExitCode::Bug, "toy points").caused_by(error);
        let values: Vec<f32> =
            self.points.flatten(0, -1).iter::<f64>().map_err(bug)?.map(|v| v as f32).collect();
        let labels = self.labels.iter::<i64>().or_exit(ExitCode::Bug, "toy labels")?;
        Ok(values.chunks(2).zip(labels).map(|(at, label)| ToyPoint { x: at[0], y: at[1], label }).collect())
    }
}

/// POINTS labels of each class.
fn class_labels() -> Tensor {
    Tensor::arange(2, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(POINTS as i64, 0, None)
}

fn share(flags: &Tensor) -> f64 {
    flags.to_kind(Kind::Double).mean(None::<Kind>).double_value(&[])
}

/// The diffusion's network: an MLP on position, time and class.
struct Mlp {
    input: Linear,
    time: Linear,
    class: Embedding,
    hidden: [Linear; 2],
    output: Linear,
}

impl Mlp {
    const WIDTH: i64 = 128;
    const WAVES: i64 = 16;

    fn new(scope: &Scope) -> Self {
        let layer = |name: &str, input, output| Linear::new(&scope.sub(name), input, output);
        Self {
            input: layer("input", 2, Self::WIDTH),
            time: layer("time", 2 * Self::WAVES, Self::WIDTH),
            class: Embedding::new(&scope.sub("class"), MODES.len() as i64, Self::WIDTH),
            hidden: [
                layer("hidden.0", Self::WIDTH, Self::WIDTH),
                layer("hidden.1", Self::WIDTH, Self::WIDTH),
            ],
            output: layer("output", Self::WIDTH, 2),
        }
    }
}

impl DenoisingNetwork for Mlp {
    fn forward(&self, x: &Tensor, t: &Tensor, y: Option<&Tensor>) -> Tensor {
        let octaves = Tensor::arange(Self::WAVES, (Kind::Float, x.device()));
        let angle = (t / 1000.).unsqueeze(1) * (octaves * (std::f64::consts::LN_2 / 2.)).exp();
        let mut hidden = self.input.forward(&x.flatten(1, -1))
            + self.time.forward(&Tensor::cat(&[angle.cos(), angle.sin()], 1));
        if let Some(y) = y {
            hidden += self.class.forward(y);
        }
        for layer in &self.hidden {
            hidden = layer.forward(&hidden.silu());
        }
        self.output.forward(&hidden.silu()).view_as(x)
    }
}

fn schedule_config() -> DiffusionScheduleConfig {
    DiffusionScheduleConfig {
        num_train_timesteps: 1000,
        beta_schedule: BetaSchedule::Linear,
        beta_start: 1e-4,
        beta_end: 0.02,
        rescale_betas_zero_snr: false,
    }
}

fn train_generator(seed: u64, real: &Cloud, steps: u64) -> Result<Mlp> {
    let (batch, lr) = TRAIN;
    let params = Params::new(seed, Kind::Float, Device::Cpu);
    let network = Mlp::new(&params.root());
    let flat = FlatParams::new(&params)?;
    let mut optimizer =
        OptimizerConfig::AdamW(AdamWConfig { lr, weight_decay: 0., ..Default::default() }).build(&flat)?;
    let config =
        DiffusionTrainConfig { prediction: Prediction::Epsilon, learn_sigma: false, class_dropout: 0. };
    let loss = DiffusionLoss::new(&schedule_config(), &config, MODES.len() as i64)?;
    for step in 0..steps {
        let mut draw = Key::new(seed, "toy/train").step(step).stream();
        let mut below =
            |n: u64| Tensor::from_slice(&(0..batch).map(|_| draw.below(n) as i64).collect::<Vec<_>>());
        let (chosen, t) = (below(2 * POINTS as u64), below(loss.timesteps() as u64));
        let mut noise = vec![0f32; 2 * batch];
        draw.fill_normal(&mut noise);
        let (images, labels) = (real.points.index_select(0, &chosen), real.labels.index_select(0, &chosen));
        let noise = Tensor::from_slice(&noise).view_as(&images);
        let batch = Batch { images: &images, labels: Some(&labels), dropped: None, t: &t, noise: &noise };
        let decay = 0.5 + 0.5 * (std::f64::consts::PI * step as f64 / steps as f64).cos();
        optimizer.step(&flat, &flat.gradient(&loss.loss(&network, &batch)?), lr * decay)?;
    }
    params.freeze();
    Ok(network)
}

/// A linear classifier of points.
struct LinearClassifier(Linear);

impl LinearClassifier {
    fn accuracy(&self, cloud: &Cloud) -> f64 {
        share(&self.logits(&cloud.points).argmax(1, false).eq_tensor(&cloud.labels))
    }
}

impl Guide for LinearClassifier {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.0.forward(&x.flatten(1, -1))
    }

    fn features(&self, x: &Tensor) -> Tensor {
        x.flatten(1, -1)
    }
}

/// Full-batch gradient descent from 0, stopped early.
fn train_linear(cloud: &Cloud) -> Result<LinearClassifier> {
    let (steps, lr) = LINEAR;
    let params = Params::for_loading(Kind::Float, Device::Cpu);
    let classifier = LinearClassifier(Linear::new(&params.root().sub("linear"), 2, MODES.len() as i64));
    let flat = FlatParams::new(&params)?;
    let config = SgdConfig { lr, momentum: 0., weight_decay: 0., nesterov: false };
    let mut optimizer = OptimizerConfig::Sgd(config).build(&flat)?;
    for _ in 0..steps {
        let loss = classifier.logits(&cloud.points).cross_entropy_for_logits(&cloud.labels);
        optimizer.step(&flat, &flat.gradient(&loss), lr)?;
    }
    params.freeze();
    Ok(classifier)
}

/// POINTS samples of each class; every arm starts from the same noise.
fn sample(
    seed: u64,
    generator: &Mlp,
    guide: &LinearClassifier,
    guidance: Option<(GradientPath, f64)>,
) -> Result<Cloud> {
    let ddim = DdimConfig {
        steps: 30,
        eta: 0.,
        timestep_spacing: Spacing::Trailing,
        steps_offset: 0,
        set_alpha_to_one: true,
        clip_sample: false,
        clip_sample_range: 1.,
    };
    let schedule = Schedule::single(&schedule_config())?;
    let sampler = Sampler::from_solver(Ddim::new(&schedule, &ddim)?, Prediction::Epsilon);
    let labels = class_labels();
    let feedback = guidance.map(|(path, omega)| {
        let config = FeedbackConfig {
            criterion: Criterion::Entropy,
            omega,
            every: 1,
            offset: 0,
            path,
            update: Update::Epsilon,
            max_t: 0.8,
            covariance: None,
            shrinkage: None,
            look: LookConfig::default(),
        };
        let targets = Targets { labels: labels.shallow_clone(), statistics: None };
        Feedback::new(&config, guide, targets, schedule.len() as i64)
    });
    let feedback = feedback.transpose()?;
    let denoiser = ClassConditional::new(generator, labels.shallow_clone());
    let start = Tensor::from_slice(&start_noise(seed)).view([-1, 2, 1, 1]);
    let no_noise =
        |index| Err(Error::new(ExitCode::Bug, format!("deterministic DDIM asked for noise at step {index}")));
    let sampled = sampler.sample(&denoiser, &start, feedback.as_ref(), &mut { no_noise }, &mut unobserved)?;
    let sampled = sampled.ok_or_else(|| Error::new(ExitCode::Bug, "unobserved sampling broke off"))?;
    Ok(Cloud { points: sampled.images, labels })
}

fn start_noise(seed: u64) -> Vec<f32> {
    let mut values = vec![0f32; 4 * POINTS];
    for (index, point) in values.chunks_mut(2).enumerate() {
        let class = (index / POINTS) as u64;
        Key::new(seed, "toy/noise").class(class).index((index % POINTS) as u64).stream().fill_normal(point);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_finds_the_small_modes() {
        let [unguided, through, detached] = <[ToyArm; 3]>::try_from(run(0).unwrap().arms).unwrap();
        assert!((0.07..0.13).contains(&unguided.minority_share), "{}", unguided.minority_share);
        assert!(unguided.validity > 0.95 && unguided.linear_minority_accuracy < 0.4);
        for arm in [through, detached] {
            let ToyArm { minority_share, validity, linear_minority_accuracy, .. } = arm;
            assert!(minority_share > 0.35 && validity > 0.85, "{}: {minority_share} {validity}", arm.name);
            assert!(linear_minority_accuracy > unguided.linear_minority_accuracy + 0.2, "{}", arm.name);
        }
    }

    #[test]
    fn a_seed_decides_every_number() {
        let first = run_steps(3, 10).unwrap();
        assert_eq!(run_steps(3, 10).unwrap(), first);
        assert_ne!(run_steps(4, 10).unwrap().real, first.real);
    }
}
