//! Kind `feedback_guidance`: sampling steered by a classifier's criterion.

use super::adm_unet::Constructor;
use super::ddim;
use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_diffusion::criterion::{ClassStatistics, Criterion, Guide, Targets, Viewed};
use equipoise_diffusion::ddim::{Ddim, DdimConfig};
use equipoise_diffusion::decoder::{DecodeMemory, Decoder, LatentDecoder, decode};
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig, GradientPath, LookConfig, Update};
use equipoise_diffusion::guidance::{ClassConditional, Denoiser};
use equipoise_diffusion::image_embedding::{DropoutRescale, DropoutTarget, EmbeddingDropout, ImageNoising};
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::sampler::Sampler;
use equipoise_diffusion::schedule::{BetaSchedule, DiffusionScheduleConfig, Schedule};
use equipoise_diffusion::scheduler_config::SchedulerConfig;
use equipoise_diffusion::text_conditional::{Condition, TextConditional};
use equipoise_diffusion::view::View;
use equipoise_models::autoencoder_kl::AutoencoderKL;
use equipoise_models::resnet::{bottleneck::BottleneckResNetConfig, cifar::CifarResNetConfig};
use equipoise_models::unet2d_condition::UNet2DConditionModel;
use equipoise_models::{ArchConfig, Classifier};
use equipoise_nn::{Params, runtime};
use equipoise_nn::layers::Mode;
use equipoise_pretrained::Component;
use serde::Deserialize;
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    match case.param::<String>("op")?.as_str() {
        "pixel" => pixel(case),
        "latent" => latent(case),
        "embed" => embed(case),
        other => Err(case.broken(&format!("op '{other}' is unknown"))),
    }
}

/// One entry of `params.runs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    id: String,
    criterion: Option<Criterion>,
    omega: f64,
    every: usize,
    offset: usize,
    mode: GradientPath,
    eta: f64,
    guidance_scale: f64,
}

/// `params.classifier`.
#[derive(Debug, Deserialize)]
#[serde(tag = "arch", rename_all = "snake_case")]
enum GuideArch {
    Torchvision { layers: [i64; 4], base: i64, groups: i64, width_per_group: i64, num_classes: i64 },
    Cifar { num_blocks: [i64; 3], base: i64, num_classes: i64 },
}

/// A classifier in eval mode.
struct EvalGuide(Classifier);

impl Guide for EvalGuide {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.0.forward(x, Mode::Eval)
    }

    fn features(&self, x: &Tensor) -> Tensor {
        self.0.features(x, Mode::Eval)
    }
}

fn classifier(case: &Case, kind: Kind) -> Result<EvalGuide> {
    let (arch, classes) = match case.param("classifier")? {
        GuideArch::Torchvision { layers, base, groups, width_per_group, num_classes } => {
            let config = BottleneckResNetConfig { layers, base, groups, width_per_group };
            (ArchConfig::BottleneckResnet(config), num_classes)
        }
        GuideArch::Cifar { num_blocks, base, num_classes } => {
            let depth = 6 * num_blocks[0] + 2;
            let config = CifarResNetConfig { depth, width: base, stem_stride: 1, normalized_head: false };
            (ArchConfig::CifarResnet(config), num_classes)
        }
    };
    let classifier = Classifier::new(&arch, Params::for_loading(kind, runtime::device()), 3, classes)?;
    classifier.load("classifier.safetensors", &case.weights("classifier.safetensors")?)?;
    classifier.params().freeze();
    Ok(EvalGuide(classifier))
}

/// The classifier of the case behind its view.
struct Eyes {
    guide: EvalGuide,
    view: View,
}

impl Eyes {
    fn new(case: &Case, kind: Kind) -> Result<Self> {
        let view = View::new(
            case.param("view_size")?,
            &case.param::<Vec<f64>>("view_mean")?,
            &case.param::<Vec<f64>>("view_std")?,
            kind,
            runtime::device(),
        )?;
        Ok(Self { guide: classifier(case, kind)?, view })
    }
}

fn pixel(case: &Case) -> Result<Tensors> {
    let kind = case.dtype();
    let generator = Constructor::read(case)?.unet(case, kind)?;
    let eyes = Eyes::new(case, kind)?;
    let (scheduler, prediction) = (ddim::scheduler(case)?, case.param::<Prediction>("prediction_type")?);
    let start = case.input("x_T")?.to_kind(kind);
    let mut got = Tensors::new();
    for run in case.param::<Vec<Run>>("runs")? {
        let labels = case.input("y")?.shallow_clone();
        let denoiser =
            ClassConditional::guided(&generator, labels, case.param("null_label")?, run.guidance_scale);
        let chain = Chain { case, run: &run, scheduler: &scheduler, prediction };
        chain.sample(&denoiser, &start, &eyes, None, &mut got)?;
    }
    Ok(got)
}

fn latent(case: &Case) -> Result<Tensors> {
    let kind = case.dtype();
    let component = |name: &str| Component::open(&case.dir.join("model").join(name));
    let unet = UNet2DConditionModel::open(&component("unet")?, kind, runtime::device())?;
    let vae = AutoencoderKL::open(&component("vae")?, kind, runtime::device())?;
    let decoder = LatentDecoder::new(&vae);
    let eyes = Eyes::new(case, kind)?;
    let scheduler = SchedulerConfig::open(&component("scheduler")?)?;
    // Both halves are given, the unconditional one first.
    let halves = |name: &str| case.input(name).map(|both| both.to_kind(kind).chunk(2, 0));
    let (text, labels) = (halves("prompt_embeds")?, halves("class_labels")?);
    let start = case.input("latents")?.to_kind(kind);
    let mut got = Tensors::new();
    for run in case.param::<Vec<Run>>("runs")? {
        let class_labels = Some(labels[1].shallow_clone());
        let condition = Condition { text: text[1].shallow_clone(), class_labels };
        let denoiser = TextConditional::new(&unet, condition, &text[0], run.guidance_scale)?;
        let chain = Chain { case, run: &run, scheduler: &scheduler, prediction: scheduler.prediction };
        chain.sample(&denoiser, &start, &eyes, Some(&decoder), &mut got)?;
    }
    Ok(got)
}

/// Dropout on the image embedding, then the class labels.
fn embed(case: &Case) -> Result<Tensors> {
    let input = |name: &str| case.input(name).map(Tensor::shallow_clone);
    let schedule = Schedule::single(&DiffusionScheduleConfig {
        num_train_timesteps: 1000,
        beta_schedule: BetaSchedule::Cosine,
        beta_start: 1e-4,
        beta_end: 0.02,
        rescale_betas_zero_snr: false,
    })?;
    let noising = ImageNoising::new(input("mean")?, input("std")?, &schedule)?;
    let level = case.param("noise_level")?;
    noising.check_level(level)?;
    let (target, rescale) = (DropoutTarget::Embedding, DropoutRescale::Inverse);
    let dropout = EmbeddingDropout { p: case.param("p")?, target, rescale };
    let dropped = dropout.keep(&input("image_embeds")?, &input("mask")?);
    let labels = noising.class_labels(&dropped, level, &input("image_noise")?);
    Ok([("dropped".to_string(), dropped), ("class_labels".to_string(), labels)].into())
}

/// One run of a case.
struct Chain<'a> {
    case: &'a Case,
    run: &'a Run,
    scheduler: &'a SchedulerConfig,
    prediction: Prediction,
}

impl Chain<'_> {
    fn input(&self, name: &str) -> Result<Tensor> {
        self.case.input(name).map(|tensor| tensor.to_kind(self.case.dtype()))
    }

    fn feedback<'g>(
        &self,
        guide: &'g dyn Guide,
        decoder: Option<&'g dyn Decoder>,
    ) -> Result<Option<Feedback<'g>>> {
        let &Run { omega, every, offset, mode: path, .. } = self.run;
        let Some(criterion) = self.run.criterion else { return Ok(None) };
        let (update, look) = (Update::Epsilon, LookConfig::default());
        // The case brings its statistics along.
        let (covariance, shrinkage) = (None, None);
        let config = FeedbackConfig {
            criterion,
            omega,
            every,
            offset,
            path,
            update,
            max_t: 1.,
            covariance,
            shrinkage,
            look,
        };
        let statistics = ClassStatistics {
            mu: self.input("mu")?,
            cov_inv: self.input("cov_inv")?,
            logdet: self.input("logdet")?,
        };
        let labels = self.case.input("target")?.shallow_clone();
        let targets = Targets { labels, statistics: Some(statistics) };
        let steps = self.case.input("alphas_cumprod")?.size()[0];
        let feedback = Feedback::new(&config, guide, targets, steps)?;
        Ok(Some(match decoder {
            Some(decoder) => feedback.through(decoder),
            None => feedback,
        }))
    }

    /// Samples, and puts what the run expects.
    fn sample(
        &self,
        denoiser: &dyn Denoiser,
        start: &Tensor,
        eyes: &Eyes,
        decoder: Option<&dyn Decoder>,
        got: &mut Tensors,
    ) -> Result<()> {
        let sampler = Sampler::from_solver(self.ddim()?, self.prediction);
        got.insert("timesteps".into(), Tensor::from_slice(sampler.timesteps()));
        let guide = Viewed::new(&eyes.guide, &eyes.view);
        let feedback = self.feedback(&guide, decoder)?;
        let noise = self.input("noise")?;
        let (mut eps_hat, mut latents, mut grads) = (Vec::new(), Vec::new(), Vec::new());
        let sampled = sampler.sample(
            denoiser,
            start,
            feedback.as_ref(),
            &mut |index| Ok(noise.get(index as i64)),
            &mut |step| {
                eps_hat.push(step.eps.shallow_clone());
                latents.push(step.x.shallow_clone());
                grads.extend(step.feedback.map(|(_, grad)| grad.shallow_clone()));
                ControlFlow::Continue(())
            },
        )?;
        let sampled = sampled.ok_or_else(|| self.case.broken("sampling broke off"))?;
        let image = match decoder {
            Some(decoder) => decode(decoder, &sampled.images, DecodeMemory::default()),
            None => sampled.images,
        };
        let mut put = |name: &str, tensor: Tensor| got.insert(format!("{}.{name}", self.run.id), tensor);
        put("eps_hat", Tensor::stack(&eps_hat, 0));
        put("latents", Tensor::stack(&latents, 0));
        put("image", image);
        if !grads.is_empty() {
            put("criterion", sampled.criterion);
            put("grad", Tensor::stack(&grads, 0));
        }
        Ok(())
    }

    /// The chain over the given abar; the kind never clips the predicted image.
    fn ddim(&self) -> Result<Ddim> {
        let alphas: Vec<f64> = self
            .case
            .input("alphas_cumprod")?
            .to_kind(Kind::Double)
            .iter::<f64>()
            .map_err(|error| self.case.broken(&error.to_string()))?
            .collect();
        let config = self.scheduler.ddim(self.case.param("steps")?, self.run.eta);
        Ddim::new(&Schedule::from_alphas_cumprod(alphas), &DdimConfig { clip_sample: false, ..config })
    }
}
