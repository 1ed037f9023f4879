//! Sampling with a small U-Net and a small classifier as images see it: independence of samples, guidance, feedback.
#![allow(clippy::unwrap_used)]

use equipoise_base::rng::Key;
use equipoise_base::{ExitCode, Result};
use equipoise_diffusion::criterion::{ClassStatistics, Criterion, Guide, Targets, Viewed};
use equipoise_diffusion::ddim::{DdimConfig, Spacing};
use equipoise_diffusion::ddpm::{DdpmConfig, ReverseVariance};
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig, GradientPath, LookConfig, Update};
use equipoise_diffusion::guidance::ClassConditional;
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::sampler::{Sampled, Sampler, SamplerConfig, unobserved};
use equipoise_diffusion::schedule::{BetaSchedule, DiffusionScheduleConfig};
use equipoise_diffusion::view::View;
use equipoise_models::adm::{AdmConfig, AdmShape, AdmUNet};
use equipoise_nn::layers::{Conv2d, Conv2dConfig, Linear};
use equipoise_nn::{Params, Scope};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

const SIZE: i64 = 8;
const CLASSES: i64 = 4;
const BATCH: i64 = 3;
const TRAIN_STEPS: i64 = 1000;

/// A convolution, ReLU, average and a linear head.
struct Classifier {
    conv: Conv2d,
    head: Linear,
}

impl Classifier {
    fn new(scope: &Scope) -> Self {
        let conv = Conv2d::new(&scope.sub("conv"), 1, 16, Conv2dConfig::same(3));
        Self { conv, head: Linear::new(&scope.sub("head"), 16, CLASSES) }
    }
}

impl Guide for Classifier {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.head.forward(&self.features(x)) * 10.
    }

    fn features(&self, x: &Tensor) -> Tensor {
        self.conv.forward(x).relu().mean_dim([2i64, 3].as_slice(), false, None::<Kind>)
    }
}

struct World {
    unet: AdmUNet,
    classifier: Classifier,
    view: View,
}

/// Networks with random weights; the output convolutions would start at 0.
fn world(out_channels: i64) -> World {
    let params = Params::new(1, Kind::Float, Device::Cpu);
    let config = AdmConfig {
        model_channels: 32,
        channel_mult: vec![1., 1.],
        num_res_blocks: 1,
        attention_resolutions: vec![2],
        num_heads: 1,
        num_head_channels: 16,
        num_heads_upsample: -1,
        use_scale_shift_norm: true,
        resblock_updown: true,
        conv_resample: true,
        use_new_attention_order: true,
        patch: 2,
        learn_sigma: false,
    };
    let shape = AdmShape { image_size: SIZE, in_channels: 1, out_channels, labels: Some(CLASSES + 1) };
    let unet = AdmUNet::new(&params.root().sub("unet"), &config, &shape).unwrap();
    let classifier = Classifier::new(&params.root().sub("classifier"));
    for (name, tensor) in params.trainable() {
        if tensor.abs().max().double_value(&[]) == 0. {
            let mut values = vec![0f32; tensor.numel()];
            Key::new(2, &name).stream().fill_normal(&mut values);
            let random = Tensor::from_slice(&values).view_as(&tensor) * 0.05;
            tch::no_grad(|| tensor.shallow_clone().copy_(&random));
        }
    }
    params.freeze();
    World { unet, classifier, view: View::new([6, 6], &[0.5], &[0.25], Kind::Float, Device::Cpu).unwrap() }
}

fn noise(purpose: &str, changed: Option<i64>) -> Tensor {
    let samples: Vec<Tensor> = (0..BATCH)
        .map(|index| {
            let mut values = vec![0f32; (SIZE * SIZE) as usize];
            let seed = if changed == Some(index) { 8 } else { 7 };
            Key::new(seed, purpose).index(index as u64).stream().fill_normal(&mut values);
            Tensor::from_slice(&values).view([1, SIZE, SIZE])
        })
        .collect();
    Tensor::stack(&samples, 0)
}

fn schedule() -> DiffusionScheduleConfig {
    DiffusionScheduleConfig {
        num_train_timesteps: TRAIN_STEPS,
        beta_schedule: BetaSchedule::Cosine,
        beta_start: 0.,
        beta_end: 0.,
        rescale_betas_zero_snr: false,
    }
}

fn ddim(eta: f64) -> SamplerConfig {
    SamplerConfig::Ddim(DdimConfig {
        steps: 6,
        eta,
        timestep_spacing: Spacing::Leading,
        steps_offset: 0,
        set_alpha_to_one: true,
        clip_sample: true,
        clip_sample_range: 1.,
    })
}

fn ddpm(variance: ReverseVariance) -> SamplerConfig {
    SamplerConfig::Ddpm(DdpmConfig { respacing: "6".into(), variance, clip_denoised: true })
}

fn feedback(criterion: Criterion, omega: f64, path: GradientPath, update: Update) -> FeedbackConfig {
    FeedbackConfig {
        criterion,
        omega,
        every: 2,
        offset: 0,
        path,
        update,
        max_t: 1.,
        covariance: None,
        shrinkage: None,
        look: LookConfig::default(),
    }
}

fn targets() -> Targets {
    let eye = Tensor::eye(16, (Kind::Float, Device::Cpu)).unsqueeze(0);
    let statistics = ClassStatistics {
        mu: Tensor::zeros([BATCH, 16], (Kind::Float, Device::Cpu)),
        cov_inv: eye * 4.,
        logdet: Tensor::from_slice(&[0f32]),
    };
    Targets { labels: Tensor::from_slice(&[0i64, 1, 2]), statistics: Some(statistics) }
}

/// Samples with v-prediction and classifier-free guidance; `changed` replaces all noise of one sample.
fn sample(
    world: &World,
    sampler: &SamplerConfig,
    config: Option<&FeedbackConfig>,
    changed: Option<i64>,
) -> Result<Sampled> {
    let sampler = Sampler::new(&schedule(), Prediction::VPrediction, sampler)?;
    let guide = Viewed::new(&world.classifier, &world.view);
    let feedback = config.map(|config| Feedback::new(config, &guide, targets(), TRAIN_STEPS)).transpose()?;
    let denoiser = ClassConditional::guided(&world.unet, targets().labels, CLASSES, 1.5);
    let fresh = &mut |index| Ok(noise(&format!("step {index}"), changed));
    let sampled =
        sampler.sample(&denoiser, &noise("start", changed), feedback.as_ref(), fresh, &mut unobserved)?;
    Ok(sampled.unwrap())
}

/// Mean criterion of the finished images.
fn final_criterion(world: &World, sampled: &Sampled, criterion: Criterion) -> f64 {
    let guide = Viewed::new(&world.classifier, &world.view);
    criterion.evaluate(&guide, &sampled.images, &targets()).mean(None::<Kind>).double_value(&[])
}

const PATHS: [GradientPath; 2] = [GradientPath::Through, GradientPath::Detached];
const UPDATES: [Update; 2] = [Update::Epsilon, Update::NormMatched];

#[test]
fn another_samples_noise_changes_no_bit() {
    let world = world(1);
    for (path, update) in PATHS.into_iter().zip(UPDATES) {
        let config = feedback(Criterion::Entropy, 0.05, path, update);
        let before = sample(&world, &ddim(0.5), Some(&config), None).unwrap();
        let after = sample(&world, &ddim(0.5), Some(&config), Some(1)).unwrap();
        for index in [0, 2] {
            assert!(before.images.get(index).equal(&after.images.get(index)), "{config:?} sample {index}");
            assert!(before.criterion.select(1, index).equal(&after.criterion.select(1, index)), "{config:?}");
        }
        assert!(!before.images.get(1).equal(&after.images.get(1)));
    }
}

#[test]
fn omega_zero_is_unguided_to_the_bit() {
    let world = world(1);
    let unguided = sample(&world, &ddim(0.), None, None).unwrap();
    assert_eq!(unguided.criterion.size(), [0, BATCH]);
    for path in PATHS {
        for update in UPDATES {
            let config = feedback(Criterion::Entropy, 0., path, update);
            let guided = sample(&world, &ddim(0.), Some(&config), None).unwrap();
            assert!(guided.images.equal(&unguided.images), "{config:?}");
            assert_eq!(guided.criterion.size(), [3, BATCH]);
        }
    }
}

#[test]
fn guidance_raises_every_criterion() {
    let world = world(1);
    let unguided = sample(&world, &ddim(0.), None, None).unwrap();
    for criterion in [Criterion::Loss, Criterion::Entropy, Criterion::Hardness] {
        let start = final_criterion(&world, &unguided, criterion);
        for (path, update, omegas) in [
            (GradientPath::Through, Update::Epsilon, [1., 4.]),
            (GradientPath::Detached, Update::Epsilon, [0.5, 2.]),
            (GradientPath::Through, Update::NormMatched, [0.05, 0.15]),
            (GradientPath::Detached, Update::NormMatched, [0.05, 0.15]),
        ] {
            let mut last = start;
            for omega in omegas {
                let config = FeedbackConfig { every: 1, ..feedback(criterion, omega, path, update) };
                let guided = final_criterion(
                    &world,
                    &sample(&world, &ddim(0.), Some(&config), None).unwrap(),
                    criterion,
                );
                assert!(guided > last, "{config:?}: {guided} after {last}");
                last = guided;
            }
        }
    }
}

#[test]
fn ancestral_sampling_takes_every_variance_and_feedback() {
    let (plain, learned) = (world(1), world(2));
    let config = feedback(Criterion::Entropy, 1., GradientPath::Through, Update::Epsilon);
    for (world, variance) in [
        (&plain, ReverseVariance::FixedSmall),
        (&plain, ReverseVariance::FixedLarge),
        (&learned, ReverseVariance::LearnedRange),
    ] {
        let unguided = sample(world, &ddpm(variance), None, None).unwrap();
        let guided = sample(world, &ddpm(variance), Some(&config), None).unwrap();
        assert!(unguided.images.isfinite().all().int64_value(&[]) == 1);
        assert!(!guided.images.equal(&unguided.images));
    }
    let error = sample(&plain, &ddpm(ReverseVariance::LearnedRange), None, None).unwrap_err();
    assert_eq!(error.code(), ExitCode::Config);
}

#[test]
fn an_observer_can_break_off() {
    let world = world(1);
    let sampler = Sampler::new(&schedule(), Prediction::VPrediction, &ddim(0.)).unwrap();
    let denoiser = ClassConditional::new(&world.unet, targets().labels);
    let mut seen = Vec::new();
    let stopped =
        sampler.sample(&denoiser, &noise("start", None), None, &mut |_| unreachable!(), &mut |step| {
            seen.push(step.timestep);
            if step.index == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    assert!(stopped.unwrap().is_none());
    assert_eq!(seen, sampler.timesteps()[..3]);
}

#[test]
fn an_epsilon_prediction_cannot_start_from_pure_noise() {
    let schedule = DiffusionScheduleConfig { rescale_betas_zero_snr: true, ..schedule() };
    let error = Sampler::new(&schedule, Prediction::Epsilon, &ddim(0.)).unwrap_err();
    assert!(error.message().contains("rescale_betas_zero_snr"));
}
