//! Latent diffusion with feedback, on tiny random networks: the published code's rule, independence of samples, memory.
#![allow(clippy::unwrap_used)]

use equipoise_base::ExitCode;
use equipoise_base::rng::Key;
use equipoise_diffusion::criterion::{Criterion, Guide, Targets, Viewed};
use equipoise_diffusion::ddim::{DdimConfig, Spacing};
use equipoise_diffusion::decoder::{DecodeMemory, Decoder, LatentDecoder, decode};
use equipoise_diffusion::dpm_solver::DpmSolverConfig;
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig, GradientPath, LookConfig, Pass, Update};
use equipoise_diffusion::guidance::Denoiser;
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::sampler::{Sampled, Sampler, SamplerConfig, unobserved};
use equipoise_diffusion::schedule::{BetaSchedule, DiffusionScheduleConfig};
use equipoise_diffusion::text_conditional::{Condition, TextConditional};
use equipoise_diffusion::view::{View, ViewRange};
use equipoise_models::autoencoder_kl::{AutoencoderKL, AutoencoderKLConfig};
use equipoise_models::unet2d_condition::{Conditioning, UNet2DConditionConfig, UNet2DConditionModel};
use equipoise_nn::layers::{Conv2d, Conv2dConfig, Linear};
use equipoise_nn::{Params, Scope};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const BATCH: i64 = 3;
const CLASSES: i64 = 4;
const SHAPE: [i64; 3] = [4, 4, 4];

/// A convolution, average and a linear head.
struct Classifier {
    conv: Conv2d,
    head: Linear,
}

impl Guide for Classifier {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.head.forward(&self.features(x)) * 10.
    }

    fn features(&self, x: &Tensor) -> Tensor {
        self.conv.forward(x).silu().mean_dim([2i64, 3].as_slice(), false, None::<Kind>)
    }
}

struct World {
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    classifier: Classifier,
}

fn world() -> World {
    let unet = json!({
        "block_out_channels": [8, 16], "layers_per_block": 1, "attention_head_dim": [2, 4], "norm_num_groups": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 12, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 6,
    });
    let vae = json!({
        "block_out_channels": [8, 8], "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    });
    let params = Params::new(1, Kind::Double, Device::Cpu);
    let scope = |name: &str| -> Scope { params.root().sub(name) };
    let classifier = scope("classifier");
    let world = World {
        unet: UNet2DConditionModel::new(
            &scope("unet"),
            &UNet2DConditionConfig::from_json("unet/config.json", unet).unwrap(),
        ),
        vae: AutoencoderKL::new(
            &scope("vae"),
            &AutoencoderKLConfig::from_json("vae/config.json", vae).unwrap(),
        ),
        classifier: Classifier {
            conv: Conv2d::new(&classifier.sub("conv"), 3, 8, Conv2dConfig::same(3)),
            head: Linear::new(&classifier.sub("head"), 8, CLASSES),
        },
    };
    params.freeze();
    world
}

/// Standard normals of one row per sample; `changed` gives one sample others.
fn normals(purpose: &str, shape: &[i64], changed: Option<i64>) -> Tensor {
    let rows: Vec<Tensor> = (0..BATCH)
        .map(|index| {
            let mut values = vec![0f32; shape.iter().product::<i64>() as usize];
            let seed = if changed == Some(index) { 8 } else { 7 };
            Key::new(seed, purpose).index(index as u64).stream().fill_normal(&mut values);
            Tensor::from_slice(&values).view(shape).to_kind(Kind::Double)
        })
        .collect();
    Tensor::stack(&rows, 0)
}

fn condition() -> Condition {
    Condition { text: normals("text", &[5, 12], None), class_labels: Some(normals("image", &[6], None)) }
}

fn negative() -> Tensor {
    normals("negative", &[5, 12], None).get(0)
}

fn view(range: ViewRange) -> View {
    View::new([6, 6], &[0.5; 3], &[0.25; 3], Kind::Double, Device::Cpu).unwrap().with_range(range)
}

fn targets(count: i64) -> Targets {
    Targets { labels: Tensor::from_slice(&[0i64, 1, 2]).narrow(0, 0, count), statistics: None }
}

fn schedule() -> DiffusionScheduleConfig {
    DiffusionScheduleConfig {
        num_train_timesteps: 1000,
        beta_schedule: BetaSchedule::ScaledLinear,
        beta_start: 0.00085,
        beta_end: 0.012,
        rescale_betas_zero_snr: false,
    }
}

fn ddim() -> SamplerConfig {
    SamplerConfig::Ddim(DdimConfig {
        steps: 6,
        eta: 0.,
        timestep_spacing: Spacing::Leading,
        steps_offset: 1,
        set_alpha_to_one: false,
        clip_sample: false,
        clip_sample_range: 1.,
    })
}

fn config(look: LookConfig) -> FeedbackConfig {
    FeedbackConfig {
        criterion: Criterion::Entropy,
        omega: 0.1,
        every: 2,
        offset: 0,
        path: GradientPath::Through,
        update: Update::NormMatched,
        max_t: 1.,
        covariance: None,
        shrinkage: None,
        look,
    }
}

fn release() -> LookConfig {
    LookConfig { pass: Pass::Conditional, blend: true, range: ViewRange::MinMax, checkpoint: false }
}

fn sample(
    world: &World,
    sampler: &SamplerConfig,
    config: Option<&FeedbackConfig>,
    changed: Option<i64>,
) -> Sampled {
    let sampler = Sampler::new(&schedule(), Prediction::VPrediction, sampler).unwrap();
    let view = view(config.map_or(ViewRange::Clamp, |config| config.look.range));
    let guide = Viewed::new(&world.classifier, &view);
    let decoder = LatentDecoder::new(&world.vae);
    let feedback =
        config.map(|config| Feedback::new(config, &guide, targets(BATCH), 1000).unwrap().through(&decoder));
    let denoiser = TextConditional::new(&world.unet, condition(), &negative(), 3.).unwrap();
    let start = normals("start", &SHAPE, changed);
    let sampled =
        sampler.sample(&denoiser, &start, feedback.as_ref(), &mut |_| unreachable!(), &mut unobserved);
    sampled.unwrap().unwrap()
}

/// The published code, written down as it reads (facts: `fg_pipe.py` of the release, for one sample): the moved latent.
fn published(world: &World, x: &Tensor, t: i64, abar: f64, omega: f64) -> Tensor {
    let Condition { text, class_labels } = condition();
    let (text, labels) = (text.narrow(0, 0, 1), class_labels.unwrap().narrow(0, 0, 1));
    let latents = x.detach().set_requires_grad(true);
    let v = world.unet.forward(&latents, &Tensor::from_slice(&[t]), &text, Some(&labels));
    let x0 = &latents * abar.sqrt() - v * (1. - abar).sqrt();
    let factor = (1. - abar).sqrt();
    let seen = x0 * factor + &latents * (1. - factor);
    let image = world.vae.decode(&(seen / world.vae.scaling_factor())) / 2. + 0.5;
    let (low, high) = (image.min().detach(), image.max().detach());
    let image = ((image - &low) / (high - &low) - 0.5) / 0.25;
    let image = image.internal_upsample_bilinear2d_aa([6, 6], false, None, None);
    let log_p = world.classifier.logits(&image).log_softmax(1, None::<Kind>);
    let entropy = -(log_p.exp() * log_p).sum(None::<Kind>);
    let grad = Tensor::run_backward(&[entropy], &[&latents], false, false).remove(0);
    x + &grad / (grad.norm() + 1e-8) * x.norm() * omega
}

#[test]
fn the_published_rule_is_reproduced() {
    let world = world();
    let (t, abar) = (501, 0.27f64);
    let x = normals("start", &SHAPE, None).narrow(0, 0, 1);
    let Condition { text, class_labels } = condition();
    let first = |rows: &Tensor| rows.narrow(0, 0, 1);
    let one = Condition { text: first(&text), class_labels: class_labels.as_ref().map(first) };
    let denoiser = TextConditional::new(&world.unet, one, &negative(), 3.).unwrap();
    let view = view(ViewRange::MinMax);
    let guide = Viewed::new(&world.classifier, &view);
    let decoder = LatentDecoder::new(&world.vae);
    let feedback = Feedback::new(&config(release()), &guide, targets(1), 1000).unwrap().through(&decoder);
    let guided = feedback.guide(&denoiser, Prediction::VPrediction, &x, t, abar);
    let want = published(&world, &x, t, abar, 0.1);
    assert!(guided.x.allclose(&want, 1e-9, 1e-9, false) && !guided.x.allclose(&x, 1e-3, 1e-3, false));
    // The noise estimate is that of the latents before the move, with guidance.
    let v = tch::no_grad(|| denoiser.denoise(&x, t));
    let eps = Prediction::VPrediction.estimate(&v, &x, abar).eps;
    assert!(guided.estimate.eps.allclose(&eps, 1e-12, 1e-12, false));
}

#[test]
fn what_conditions_alone_decide_is_kept_bit_for_bit() {
    let world = world();
    let Condition { text, class_labels } = condition();
    let kept = Conditioning::new(text.shallow_clone(), class_labels.as_ref().map(Tensor::shallow_clone));
    for t in [901i64, 501, 901, 1] {
        let (x, t) = (normals("start", &SHAPE, Some(t % BATCH)), Tensor::from_slice(&[t]));
        let want = world.unet.forward(&x, &t, &text, class_labels.as_ref());
        assert_eq!(world.unet.conditioned(&x, &t, &kept), want, "t = {t}");
    }
}

#[test]
fn another_samples_noise_changes_no_bit() {
    let world = world();
    for look in [LookConfig::default(), release()] {
        let [before, after] =
            [None, Some(1)].map(|changed| sample(&world, &ddim(), Some(&config(look.clone())), changed));
        for index in [0, 2] {
            assert!(before.images.get(index).equal(&after.images.get(index)), "{look:?} sample {index}");
            assert!(before.criterion.select(1, index).equal(&after.criterion.select(1, index)), "{look:?}");
        }
        assert!(!before.images.get(1).equal(&after.images.get(1)));
    }
}

#[test]
fn less_memory_gives_the_same_bits() {
    let world = world();
    for path in [GradientPath::Through, GradientPath::Detached] {
        for pass in [Pass::Guided, Pass::Conditional] {
            let [plain, saved] = [false, true].map(|checkpoint| {
                let look = LookConfig { pass, checkpoint, ..LookConfig::default() };
                sample(&world, &ddim(), Some(&FeedbackConfig { path, ..config(look) }), None)
            });
            assert!(plain.images.equal(&saved.images), "{path:?} {pass:?}");
            assert!(plain.criterion.equal(&saved.criterion), "{path:?} {pass:?}");
        }
    }
}

#[test]
fn feedback_raises_the_entropy_of_decoded_images() {
    let world = world();
    let view = view(ViewRange::Clamp);
    let guide = Viewed::new(&world.classifier, &view);
    let solver = DpmSolverConfig { steps: 6, timestep_spacing: Spacing::Leading, steps_offset: 1 };
    for sampler in [ddim(), SamplerConfig::DpmSolver(solver)] {
        let entropy = |omega: f64| {
            let config = FeedbackConfig { omega, every: 1, ..config(LookConfig::default()) };
            let sampled = sample(&world, &sampler, Some(&config), None);
            let images = decode(&LatentDecoder::new(&world.vae), &sampled.images, DecodeMemory::default());
            let entropy = Criterion::Entropy.evaluate(&guide, &images, &targets(BATCH));
            entropy.mean(None::<Kind>).double_value(&[])
        };
        let (unguided, guided) = (entropy(0.), entropy(0.15));
        assert!(guided > unguided, "{sampler:?}: {guided} after {unguided}");
    }
}

#[test]
fn conditions_must_suit_the_network() {
    let world = world();
    let text = Condition { class_labels: None, ..condition() };
    let error = TextConditional::new(&world.unet, text, &negative(), 3.).unwrap_err();
    assert_eq!(error.code(), ExitCode::Config);
    assert!(error.message().contains("image embedding"));
    assert_eq!(LatentDecoder::new(&world.vae).segments(), 4);
}
