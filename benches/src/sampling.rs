//! Sampling with the committed Fashion-MNIST generator, as the quickstart does it: plain, or with the judge's feedback.

use crate::dump::dump;
use crate::guide::{CLASSES, Judge};
use crate::noise::normals;
use crate::parts::Parts;
use crate::timing::Repeats;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use equipoise_diffusion::criterion::{Guide, Targets, Viewed};
use equipoise_diffusion::ddim::{DdimConfig, Spacing};
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig};
use equipoise_diffusion::guidance::{ClassConditional, Denoiser};
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::sampler::{Sampled, Sampler, SamplerConfig, unobserved};
use equipoise_diffusion::schedule::{BetaSchedule, DiffusionScheduleConfig};
use equipoise_diffusion::view::View;
use equipoise_models::adm::{AdmConfig, AdmShape, AdmUNet};
use equipoise_nn::{Params, Precision, runtime, weights};
use serde_json::{Value, json};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Time steps that the generator was trained with.
const TRAIN_STEPS: i64 = 1000;
/// Height and width.
const SIZE: i64 = 28;

/// A batch and its sampler.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The generator.
    #[arg(long, default_value = "configs/weights/fashion-mnist-generator.safetensors")]
    weights: PathBuf,
    /// Images at once.
    #[arg(long, default_value_t = 64)]
    batch: i64,
    /// DDIM steps.
    #[arg(long, default_value_t = 10)]
    steps: i64,
    /// Scale of classifier-free guidance.
    #[arg(long, default_value_t = 1.5)]
    cfg_scale: f64,
    /// fp32 (never TF32) or bf16.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    precision: String,
    /// Feedback of the committed judge, as in the quickstart.
    #[arg(long)]
    feedback: bool,
    /// The judge.
    #[arg(long, default_value = "configs/weights/fashion-mnist-judge.safetensors")]
    judge: PathBuf,
    /// Say where the time of a round goes.
    #[arg(long)]
    profile: bool,
    /// Write starting noise, labels and images of one batch to this safetensors file: the peer must make the same.
    #[arg(long)]
    dump: Option<PathBuf>,
    #[command(flatten)]
    repeats: Repeats,
}

/// The network of `configs/default.toml`, which the committed weights are of.
fn network(params: &Params) -> Result<AdmUNet> {
    let config = AdmConfig {
        model_channels: 64,
        channel_mult: vec![1., 2.],
        num_res_blocks: 1,
        attention_resolutions: vec![2],
        num_heads: 4,
        num_head_channels: -1,
        num_heads_upsample: -1,
        use_scale_shift_norm: true,
        resblock_updown: false,
        conv_resample: true,
        use_new_attention_order: false,
        patch: 2,
        learn_sigma: false,
    };
    let shape = AdmShape { image_size: SIZE, in_channels: 1, out_channels: 1, labels: Some(CLASSES + 1) };
    AdmUNet::new(&params.root(), &config, &shape)
}

fn sampler(steps: i64) -> Result<Sampler> {
    let schedule = DiffusionScheduleConfig {
        num_train_timesteps: TRAIN_STEPS,
        beta_schedule: BetaSchedule::Cosine,
        beta_start: 1e-4,
        beta_end: 0.02,
        rescale_betas_zero_snr: false,
    };
    let ddim = DdimConfig {
        steps,
        eta: 0.,
        timestep_spacing: Spacing::Trailing,
        steps_offset: 0,
        set_alpha_to_one: true,
        clip_sample: true,
        clip_sample_range: 1.,
    };
    Sampler::new(&schedule, Prediction::VPrediction, &SamplerConfig::Ddim(ddim))
}

/// Measures, the images brought to the host each time.
///
/// # Errors
/// 65 if the weights are not of this network.
pub fn run(args: &Args) -> Result<Value> {
    let device = runtime::device();
    let params = Params::for_loading(Kind::Float, device);
    let unet = network(&params)?;
    params.load(&args.weights.display().to_string(), &weights::read(&args.weights)?)?;
    params.freeze();
    let precision = if args.precision == "bf16" { Precision::Bf16 } else { Precision::Fp32 };
    let start = normals("bench", &[args.batch, 1, SIZE, SIZE]).to_device(device);
    let labels = Tensor::arange(args.batch, (Kind::Int64, device)).remainder(CLASSES);
    let sampler = sampler(args.steps)?;
    let judge = args.feedback.then(|| Judge::committed(&args.judge)).transpose()?;
    let view = View::new([SIZE; 2], &[0.286], &[0.353], Kind::Float, device)?;
    let parts = Parts::default();
    let batch = || -> Result<Tensor> {
        let conditional = ClassConditional::guided(&unet, labels.shallow_clone(), CLASSES, args.cfg_scale);
        let denoiser = parts.timed("network", &conditional as &dyn Denoiser);
        let seen = judge.as_ref().map(|judge| Viewed::new(judge, &view));
        let guide = seen.as_ref().map(|seen| parts.timed("classifier", seen as &dyn Guide));
        let feedback = guide.as_ref().map(|guide| feedback(guide, &labels)).transpose()?;
        let no_noise = &mut |_| Ok(start.zeros_like());
        let sampled = precision.scope(device, || {
            sampler.sample(&denoiser, &start, feedback.as_ref(), no_noise, &mut unobserved)
        })??;
        match sampled {
            Some(Sampled { images, .. }) => Ok(images.to_device(Device::Cpu)),
            None => Err(Error::new(ExitCode::Bug, "sampling broke off")),
        }
    };
    if let Some(path) = &args.dump {
        let tensors = [("start", &start), ("labels", &labels), ("images", &batch()?)];
        dump(path, &tensors.map(|(name, tensor)| (name.to_string(), tensor.shallow_clone())))?;
    }
    let mut line = args.repeats.measure(args.batch, || batch().map(drop))?;
    parts.take();
    if args.profile {
        drop(batch()?);
        line["profile"] = parts.take();
    }
    line["bench"] = "sampling".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({
        "batch": args.batch, "steps": args.steps, "cfg_scale": args.cfg_scale, "precision": args.precision,
        "feedback": args.feedback, "tf32": false,
    });
    Ok(line)
}

/// The quickstart's feedback.
fn feedback<'a>(guide: &'a dyn Guide, labels: &Tensor) -> Result<Feedback<'a>> {
    let config = json!({
        "criterion": "entropy", "omega": 0.03, "every": 1, "offset": 0, "path": "detached",
        "update": "norm_matched", "max_t": 0.8,
    });
    let config: FeedbackConfig = serde_json::from_value(config).or_exit(ExitCode::Bug, "feedback")?;
    let targets = Targets { labels: labels.shallow_clone(), statistics: None };
    Feedback::new(&config, guide, targets, TRAIN_STEPS)
}
