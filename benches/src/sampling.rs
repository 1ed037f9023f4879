//! Sampling with the committed Fashion-MNIST generator, as the quickstart does it.

use crate::timing::Repeats;
use equipoise_base::rng::Key;
use equipoise_base::{Error, Result};
use equipoise_diffusion::ddim::{DdimConfig, Spacing};
use equipoise_diffusion::guidance::ClassConditional;
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::sampler::{Sampled, Sampler, SamplerConfig, unobserved};
use equipoise_diffusion::schedule::{BetaSchedule, DiffusionScheduleConfig};
use equipoise_models::adm::{AdmConfig, AdmShape, AdmUNet};
use equipoise_nn::{Params, Precision, runtime, weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Kind, Tensor};

/// Classes of the data; the label after them stands for none.
const CLASSES: i64 = 10;
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
        num_train_timesteps: 1000,
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
    let mut noise = vec![0f32; (args.batch * SIZE * SIZE) as usize];
    Key::new(0, "bench").stream().fill_normal(&mut noise);
    let start = Tensor::from_slice(&noise).view([args.batch, 1, SIZE, SIZE]).to_device(device);
    let labels = Tensor::arange(args.batch, (Kind::Int64, device)).remainder(CLASSES);
    let (sampler, mut images) = (sampler(args.steps)?, start.shallow_clone());
    let mut batch = || -> Result<()> {
        let denoiser = ClassConditional::guided(&unet, labels.shallow_clone(), CLASSES, args.cfg_scale);
        let no_noise = &mut |_| Ok(start.zeros_like());
        let sampled = precision
            .scope(device, || sampler.sample(&denoiser, &start, None, no_noise, &mut unobserved))??;
        images = sampled.map(|Sampled { images, .. }| images.to_device(tch::Device::Cpu)).unwrap_or_default();
        Ok(())
    };
    let mut line = args.repeats.measure(args.batch, &mut batch)?;
    if let Some(path) = &args.dump {
        let tensors = [("start", &start), ("labels", &labels), ("images", &images)];
        let named: Vec<_> = tensors.map(|(name, tensor)| (name.to_string(), tensor.shallow_clone())).into();
        write(path, &weights::to_bytes(&named, &BTreeMap::new())?)?;
    }
    line["bench"] = "sampling".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({
        "batch": args.batch, "steps": args.steps, "cfg_scale": args.cfg_scale, "precision": args.precision,
        "tf32": false,
    });
    Ok(line)
}

#[allow(clippy::disallowed_methods, reason = "a file for the peer, not in a run directory")]
fn write(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|error| Error::io("write", path, error))
}
