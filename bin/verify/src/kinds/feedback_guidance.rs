//! Kind `feedback_guidance`: sampling steered by a classifier's criterion.

use super::adm_unet::Constructor;
use super::ddim::Scheduler;
use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_diffusion::criterion::{ClassStatistics, Criterion, Guide, Targets, Viewed};
use equipoise_diffusion::ddim::{Ddim, DdimConfig};
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig, GradientPath, Update};
use equipoise_diffusion::guidance::ClassConditional;
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::sampler::Sampler;
use equipoise_diffusion::schedule::Schedule;
use equipoise_diffusion::view::View;
use equipoise_models::adm::AdmUNet;
use equipoise_models::resnet::{bottleneck::BottleneckResNetConfig, cifar::CifarResNetConfig};
use equipoise_models::{ArchConfig, Classifier};
use equipoise_nn::{Params, runtime};
use equipoise_nn::layers::Mode;
use serde::Deserialize;
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    match case.param::<String>("op")?.as_str() {
        "pixel" => pixel(case),
        op @ ("latent" | "embed") => {
            Err(case.broken(&format!("op '{op}' needs the latent generator, which this build does not have")))
        }
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

fn pixel(case: &Case) -> Result<Tensors> {
    let kind = case.dtype();
    let generator = Constructor::read(case)?.unet(case, kind)?;
    let guide = classifier(case, kind)?;
    let view = View::new(
        case.param("view_size")?,
        &case.param::<Vec<f64>>("view_mean")?,
        &case.param::<Vec<f64>>("view_std")?,
        kind,
        runtime::device(),
    )?;
    let guide = Viewed::new(&guide, &view);
    let mut got = Tensors::new();
    for run in case.param::<Vec<Run>>("runs")? {
        sample(case, &run, &generator, &guide, &mut got)?;
    }
    Ok(got)
}

fn sample(case: &Case, run: &Run, generator: &AdmUNet, guide: &dyn Guide, got: &mut Tensors) -> Result<()> {
    let kind = case.dtype();
    let input = |name: &str| case.input(name).map(|tensor| tensor.to_kind(kind));
    let sampler = Sampler::from_solver(ddim(case, run)?, case.param::<Prediction>("prediction_type")?);
    got.insert("timesteps".into(), Tensor::from_slice(sampler.timesteps()));
    let targets = || -> Result<Targets> {
        let statistics =
            ClassStatistics { mu: input("mu")?, cov_inv: input("cov_inv")?, logdet: input("logdet")? };
        Ok(Targets { labels: case.input("target")?.shallow_clone(), statistics: Some(statistics) })
    };
    let feedback = run.criterion.map(|criterion| -> Result<Feedback> {
        let &Run { omega, every, offset, mode: path, .. } = run;
        let config =
            FeedbackConfig { criterion, omega, every, offset, path, update: Update::Epsilon, max_t: 1. };
        Feedback::new(&config, guide, targets()?, case.input("alphas_cumprod")?.size()[0])
    });
    let feedback = feedback.transpose()?;
    let labels = case.input("y")?.shallow_clone();
    let denoiser = ClassConditional::guided(generator, labels, case.param("null_label")?, run.guidance_scale);
    let noise = input("noise")?;
    let (mut eps_hat, mut latents, mut grads) = (Vec::new(), Vec::new(), Vec::new());
    let sampled = sampler.sample(
        &denoiser,
        &input("x_T")?,
        feedback.as_ref(),
        &mut |index| Ok(noise.get(index as i64)),
        &mut |step| {
            eps_hat.push(step.eps.shallow_clone());
            latents.push(step.x.shallow_clone());
            grads.extend(step.feedback.map(|(_, grad)| grad.shallow_clone()));
            ControlFlow::Continue(())
        },
    )?;
    let sampled = sampled.ok_or_else(|| case.broken("sampling broke off"))?;
    let mut put = |name: &str, tensor: Tensor| got.insert(format!("{}.{name}", run.id), tensor);
    put("eps_hat", Tensor::stack(&eps_hat, 0));
    put("latents", Tensor::stack(&latents, 0));
    put("image", sampled.images);
    if !grads.is_empty() {
        put("criterion", sampled.criterion);
        put("grad", Tensor::stack(&grads, 0));
    }
    Ok(())
}

/// The chain over the given abar; the kind never clips the predicted image.
fn ddim(case: &Case, run: &Run) -> Result<Ddim> {
    let alphas: Vec<f64> = case
        .input("alphas_cumprod")?
        .to_kind(Kind::Double)
        .iter::<f64>()
        .map_err(|error| case.broken(&error.to_string()))?
        .collect();
    let config = Scheduler::read(case)?.ddim(case.param("steps")?, run.eta);
    Ddim::new(&Schedule::from_alphas_cumprod(alphas), &DdimConfig { clip_sample: false, ..config })
}
