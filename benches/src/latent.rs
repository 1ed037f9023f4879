//! Latent diffusion out of a Hugging Face folder: text and image embedding, classifier-free guidance, plain or with
//! feedback of a classifier through the decoder (seed 002, Eq. 1 to 4).

use crate::dump::dump;
use crate::guide::{CLASSES, Judge};
use crate::noise::normals;
use crate::parts::Parts;
use crate::timing::Repeats;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, ensure};
use equipoise_diffusion::criterion::{Guide, Targets, Viewed};
use equipoise_diffusion::decoder::{DecodeMemory, Decoder, decode};
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig};
use equipoise_diffusion::guidance::Denoiser;
use equipoise_diffusion::pipeline::LatentDiffusion;
use equipoise_diffusion::sampler::{Sampler, SamplerConfig, unobserved};
use equipoise_diffusion::text_conditional::{Condition, TextConditional};
use equipoise_diffusion::view::View;
use equipoise_nn::{Precision, runtime};
use equipoise_pretrained::Folder;
use serde_json::{Value, json};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Tokens of a text.
const TOKENS: i64 = 77;
/// Side that the classifier looks at.
const VIEW: i64 = 32;
/// Channels of the classifier's first stage.
const WIDTH: i64 = 16;

/// A folder, a batch and its sampler.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hugging Face folder of an unCLIP pipeline.
    #[arg(long)]
    folder: PathBuf,
    /// Images at once.
    #[arg(long, default_value_t = 4)]
    batch: i64,
    /// DDIM steps.
    #[arg(long, default_value_t = 10)]
    steps: i64,
    /// Scale of classifier-free guidance.
    #[arg(long, default_value_t = 5.0)]
    cfg_scale: f64,
    /// fp32 (never TF32) or bf16.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    precision: String,
    /// Feedback at every n-th step; none if left out.
    #[arg(long)]
    every: Option<usize>,
    /// Say where the time of a round goes.
    #[arg(long)]
    profile: bool,
    /// Write what a batch starts from, the classifier and the images to this safetensors file.
    #[arg(long)]
    dump: Option<PathBuf>,
    #[command(flatten)]
    repeats: Repeats,
}

/// Everything that a batch is made from. Embeddings are random: encoding them is once per class or real image, and what
/// they hold changes nothing about the work.
struct Inputs {
    /// Starting noise [N, C, h, w].
    start: Tensor,
    /// Text embeddings [2, L, D]: of the images, and of the unconditional half.
    texts: Tensor,
    /// Noised image embeddings [N, 2E].
    class_labels: Tensor,
}

impl Inputs {
    fn new(pipeline: &LatentDiffusion, batch: i64) -> Result<Self> {
        let config = pipeline.unet.config();
        let Some(labels) = config.projection_class_embeddings_input_dim else {
            return Err(Error::config("the folder has no image conditioning: want an unCLIP pipeline"));
        };
        let normals = |purpose: &str, shape: &[i64]| runtime::upload(&normals(purpose, shape));
        let [channels, height, width] = pipeline.latent_shape(pipeline.native_size())?;
        Ok(Self {
            start: normals("bench/start", &[batch, channels, height, width]),
            texts: normals("bench/texts", &[2, TOKENS, config.cross_attention_dim]),
            class_labels: normals("bench/labels", &[batch, labels]),
        })
    }

    /// As a set's batch is bound in `stages::latent`.
    fn denoiser<'a>(&self, pipeline: &'a LatentDiffusion, scale: f64) -> Result<TextConditional<'a>> {
        let batch = self.start.size()[0];
        let condition = Condition {
            text: self.texts.narrow(0, 0, 1).expand([batch, -1, -1], false),
            class_labels: Some(self.class_labels.shallow_clone()),
        };
        TextConditional::new(&pipeline.unet, condition, &self.texts.narrow(0, 1, 1), scale)
    }
}

/// Measures, the images brought to the host each time.
///
/// # Errors
/// 65 if the folder is damaged, 78 if it has no image conditioning.
pub fn run(args: &Args) -> Result<Value> {
    let device = runtime::device();
    let pipeline = LatentDiffusion::open(&Folder::open(&args.folder)?, Kind::Float, device)?;
    let inputs = Inputs::new(&pipeline, args.batch)?;
    let precision = if args.precision == "bf16" { Precision::Bf16 } else { Precision::Fp32 };
    let ddim = SamplerConfig::Ddim(pipeline.scheduler.ddim(args.steps, 0.));
    let sampler = Sampler::new(&pipeline.scheduler.schedule, pipeline.scheduler.prediction, &ddim)?;
    let (judge, parts) = (Judge::untrained(WIDTH)?, Parts::default());
    let view = View::new([VIEW; 2], &[0.5; 3], &[0.25; 3], Kind::Float, device)?;
    let seen = Viewed::new(&judge, &view);
    let guide = parts.timed("classifier", &seen as &dyn Guide);
    let decoder = parts.timed("decoder", &pipeline.decoder as &dyn Decoder);
    let train_steps = pipeline.scheduler.schedule.num_train_timesteps;
    let feedback = args.every.map(|every| feedback(&guide, every, args.batch, train_steps)).transpose()?;
    let feedback = feedback.map(|feedback| feedback.through(&decoder));
    let batch = || -> Result<Tensor> {
        let no_noise = &mut |_| Ok(inputs.start.zeros_like());
        let images = precision.scope(device, || -> Result<Option<Tensor>> {
            let conditional = inputs.denoiser(&pipeline, args.cfg_scale)?;
            let denoiser = parts.timed("network", &conditional as &dyn Denoiser);
            let sampled =
                sampler.sample(&denoiser, &inputs.start, feedback.as_ref(), no_noise, &mut unobserved)?;
            Ok(sampled.map(|sampled| decode(&decoder, &sampled.images, DecodeMemory::default())))
        })??;
        let Some(images) = images else { return Err(Error::new(ExitCode::Bug, "sampling broke off")) };
        Ok(images.to_kind(Kind::Float).to_device(Device::Cpu))
    };
    if let Some(path) = &args.dump {
        let images = batch()?;
        ensure!(images.isfinite().all().int64_value(&[]) == 1, NonFinite, "the images are not finite");
        let mut tensors = vec![
            ("start".to_string(), inputs.start.shallow_clone()),
            ("texts".into(), inputs.texts.shallow_clone()),
            ("class_labels".into(), inputs.class_labels.shallow_clone()),
            ("images".into(), images),
        ];
        tensors.extend(judge.tensors().into_iter().map(|(name, tensor)| (format!("judge.{name}"), tensor)));
        dump(path, &tensors)?;
    }
    let mut line = args.repeats.measure(args.batch, || batch().map(drop))?;
    parts.take();
    if args.profile {
        drop(batch()?);
        line["profile"] = parts.take();
    }
    line["bench"] = "latent".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({
        "batch": args.batch, "steps": args.steps, "cfg_scale": args.cfg_scale, "precision": args.precision,
        "every": args.every,
    });
    Ok(line)
}

/// Entropy, the paper's update, the gradient through network, decoder and classifier.
fn feedback(guide: &dyn Guide, every: usize, batch: i64, train_steps: i64) -> Result<Feedback<'_>> {
    let config = json!({
        "criterion": "entropy", "omega": 0.5, "every": every, "offset": 0, "path": "through",
        "update": "epsilon", "max_t": 1.0,
    });
    let config: FeedbackConfig = serde_json::from_value(config).or_exit(ExitCode::Bug, "feedback")?;
    let labels = Tensor::arange(batch, (Kind::Int64, runtime::device())).remainder(CLASSES);
    Feedback::new(&config, guide, Targets { labels, statistics: None }, train_steps)
}
