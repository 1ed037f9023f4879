//! Kind `unclip_pipeline`: a whole folder, from text and image to image.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_diffusion::decoder::{DecodeMemory, decode};
use equipoise_diffusion::guidance::Denoiser;
use equipoise_diffusion::pipeline::{ImageConditioner, LatentDiffusion, TextConditioner};
use equipoise_diffusion::sampler::{Sampler, SamplerConfig};
use equipoise_diffusion::text_conditional::{Condition, TextConditional};
use equipoise_pretrained::Folder;
use std::cell::RefCell;
use std::ops::ControlFlow;
use equipoise_nn::runtime;
use tch::Tensor;

/// A denoiser that keeps what it said.
struct Recorded<'a> {
    denoiser: TextConditional<'a>,
    outputs: RefCell<Vec<Tensor>>,
}

impl Denoiser for Recorded<'_> {
    fn denoise(&self, x: &Tensor, t: i64) -> Tensor {
        let output = self.denoiser.denoise(x, t);
        self.outputs.borrow_mut().push(output.shallow_clone());
        output
    }

    fn conditional(&self, x: &Tensor, t: i64) -> Tensor {
        self.denoiser.conditional(x, t)
    }
}

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let kind = case.dtype();
    let input = |name: &str| case.input(name).map(|tensor| tensor.to_kind(kind));
    let (folder, device) = (Folder::open(&case.dir.join("model"))?, runtime::device());
    let pipeline = LatentDiffusion::open(&folder, kind, device)?;
    let texts = TextConditioner::open(&folder, kind, device)?;
    let prompt: Vec<String> = case.param("prompt")?;
    let negative: Option<Vec<String>> = case.param("negative_prompt")?;
    let ids = texts.tokenize(&prompt)?;
    let negative_ids = texts.tokenize(&negative.unwrap_or_else(|| vec![String::new(); prompt.len()]))?;
    let (text, negative) = (texts.embed(&ids), texts.embed(&negative_ids));
    let mut got = Tensors::from([("input_ids".into(), ids), ("negative_input_ids".into(), negative_ids)]);
    let mut put = |name: &str, tensor: Tensor| got.insert(name.to_string(), tensor);

    let scale: f64 = case.param("guidance_scale")?;
    // The unconditional half comes first, where there is one.
    let halves = |uncond: &Tensor, cond: &Tensor| match scale > 1. {
        true => Tensor::cat(&[uncond, cond], 0),
        false => cond.shallow_clone(),
    };
    let noising = pipeline.noising.as_ref().ok_or_else(|| case.broken("the U-Net takes no image"))?;
    let level = case.param("noise_level")?;
    noising.check_level(level)?;
    let images = ImageConditioner::open(&folder, kind, device)?;
    let embeddings = images.embed(&input("pixel_values")?);
    let labels = noising.class_labels(&embeddings, level, &input("image_noise")?);
    put("prompt_embeds", halves(&negative, &text));
    put("class_labels", halves(&labels.zeros_like(), &labels));
    put("image_embeds", embeddings);

    let config = SamplerConfig::Ddim(pipeline.scheduler.ddim(case.param("steps")?, case.param("eta")?));
    let sampler = Sampler::new(&pipeline.scheduler.schedule, pipeline.scheduler.prediction, &config)?;
    put("timesteps", Tensor::from_slice(sampler.timesteps()));
    let condition = Condition { text, class_labels: Some(labels) };
    let denoiser = TextConditional::new(&pipeline.unet, condition, &negative, scale)?;
    let denoiser = Recorded { denoiser, outputs: RefCell::default() };
    let (noise, mut latents) = (input("step_noise")?, Vec::new());
    let sampled = sampler.sample(
        &denoiser,
        &input("latents")?,
        None,
        &mut |index| Ok(noise.get(index as i64)),
        &mut |step| {
            latents.push(step.x.shallow_clone());
            ControlFlow::Continue(())
        },
    )?;
    let sampled = sampled.ok_or_else(|| case.broken("sampling broke off"))?;
    let image = decode(&pipeline.decoder, &sampled.images, DecodeMemory::default());
    put("noise_pred", Tensor::stack(&denoiser.outputs.into_inner(), 0));
    put("latents_steps", Tensor::stack(&latents, 0));
    put("latents_final", sampled.images);
    put("image01", (&image / 2. + 0.5).clamp(0., 1.));
    put("image_out", image);
    Ok(got)
}
