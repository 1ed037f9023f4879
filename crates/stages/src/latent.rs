//! Images out of a latent diffusion: text of the class and, for unCLIP, the embedding of a random real image of it
//! (seed 002, Section 2.2).

use crate::embed::{ImageEmbeddings, TextEmbeddings};
use crate::nets::DataShape;
use crate::source::{BatchId, Source};
use crate::step::Step;
use equipoise_base::{ClassId, Identity, Result, ensure, trace};
use equipoise_config::method;
use equipoise_diffusion::condition_config::{ConditionConfig, ImageCondition};
use equipoise_diffusion::decoder::{DecodeMemory, Decoder, decode};
use equipoise_diffusion::guidance::Denoiser;
use equipoise_diffusion::image_embedding::DropoutTarget;
use equipoise_diffusion::pipeline::{IMAGE_PARTS, LatentDiffusion, TEXT_PARTS};
use equipoise_diffusion::sampler::{Sampler, SamplerConfig};
use equipoise_diffusion::text_conditional::{Condition, TextConditional};
use equipoise_diffusion::view::resize;
use equipoise_nn::{Precision, runtime};
use equipoise_pretrained::Folder;
use equipoise_workplan::Layout;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use tch::{Kind, Tensor};

/// A latent diffusion with what it is told about each image.
pub struct LatentSource {
    pipeline: LatentDiffusion,
    config: ConditionConfig,
    hash: Identity,
    classes: Vec<String>,
    contexts: Vec<String>,
    /// Says the group of each image, if the plan is by group.
    groups: Option<Layout>,
    /// Channels, height and width of a latent image.
    shape: [i64; 3],
    /// Height and width of a stored image.
    stored: [i64; 2],
    sampled: [i64; 2],
    /// Embeddings of the real images that condition.
    examples: Option<ImageEmbeddings>,
    texts: TextEmbeddings,
    /// Embeddings of texts [1, L, D] that were asked for: every batch of a class asks for the same.
    known: RefCell<BTreeMap<String, Tensor>>,
}

impl LatentSource {
    /// Loads what samples of the folder of `[diffusion]`, held as `precision` computes with it; `split` has the real
    /// images, `groups` is the plan if it is by group.
    ///
    /// # Errors
    /// 65 naming what is missing or damaged in the folder or among the embeddings, or a class without real images; 78
    /// if the condition does not fit the networks.
    pub fn open(
        step: &Step,
        folder: &Path,
        condition: &method::Condition,
        split: &str,
        groups: Option<Layout>,
        shape: &DataShape,
        precision: Precision,
    ) -> Result<Self> {
        let config: ConditionConfig = condition.parse()?;
        config.check()?;
        ensure!(
            matches!(shape.channels, 1 | 3),
            Config,
            "data.channels = {}: a latent generator makes images of 3 channels, or 1",
            shape.channels
        );
        let folder = Folder::open(folder)?;
        let start = Instant::now();
        let mut pipeline = LatentDiffusion::open(&folder, precision, runtime::device())?;
        equipoise_telemetry::info!(
            "{}: loaded in {:.1} s; at most {:.1} GiB of memory so far",
            folder.path().display(),
            start.elapsed().as_secs_f64(),
            equipoise_telemetry::peak_memory_bytes() as f64 / f64::from(1 << 30)
        );
        if shape.channels == 1 {
            pipeline.decoder = pipeline.decoder.grey();
        }
        let (classes, records) = (step.classes()?, folder.records()?);
        let examples = match (&pipeline.noising, config.image) {
            (Some(noising), ImageCondition::Random) => {
                noising.check_level(config.noise_level)?;
                let weights = records.identity_of(&IMAGE_PARTS);
                let examples = ImageEmbeddings::open(step, split, &classes, noising.width(), &weights)?;
                noising.check_width(examples.width())?;
                Some(examples)
            }
            _ => None,
        };
        let width = pipeline.unet.config().cross_attention_dim;
        let texts = TextEmbeddings::open(step, width, &records.identity_of(&TEXT_PARTS))?;
        let sampled = config.size.unwrap_or(pipeline.native_size());
        Ok(Self {
            shape: pipeline.latent_shape(sampled)?,
            stored: shape.size,
            hash: hash(&records.identity(), precision),
            texts,
            known: RefCell::default(),
            pipeline,
            config,
            classes,
            contexts: step.contexts()?,
            groups,
            sampled,
            examples,
        })
    }

    /// Embeddings [1, L, D] of a text, read once.
    fn text(&self, text: &str) -> Result<Tensor> {
        if let Some(known) = self.known.borrow().get(text) {
            return Ok(known.shallow_clone());
        }
        let embedded = self.texts.of(text)?;
        self.known.borrow_mut().insert(text.to_string(), embedded.shallow_clone());
        Ok(embedded)
    }

    /// Class labels [N, 2E] of a batch: embeddings of real images, noised and thinned out.
    fn class_labels(&self, batch: &BatchId) -> Result<Option<Tensor>> {
        let Some(noising) = &self.pipeline.noising else { return Ok(None) };
        let width = noising.width();
        let Some(examples) = &self.examples else {
            let options = (Kind::Float, runtime::device());
            return Ok(Some(Tensor::zeros([batch.indices.len() as i64, 2 * width], options)));
        };
        let rows = batch.indices.iter().map(|&index| row(examples, batch, index, self.config.example));
        let embeddings: Vec<Tensor> = rows.map(|row| examples.row(row)).collect::<Result<_>>()?;
        let dropout = &self.config.dropout;
        let thin = |x: Tensor, target: DropoutTarget| {
            if dropout.target != target || dropout.p == 0. {
                return x;
            }
            let uniform = batch.rows(&[x.size()[1]], |index, row| {
                let mut stream = batch.key("condition/dropout", index).stream();
                row.iter_mut().for_each(|value| *value = stream.uniform() as f32);
            });
            dropout.apply(&x, &uniform)
        };
        let embeddings = thin(Tensor::cat(&embeddings, 0), DropoutTarget::Embedding);
        let noise = batch.normals(&[width], |index| batch.key("condition/noise", index));
        let labels = noising.class_labels(&embeddings, self.config.noise_level, &noise);
        Ok(Some(thin(labels, DropoutTarget::ClassLabel)))
    }
}

/// The row that an image is conditioned on: a random one of its class, unless the recipe names an `example`.
fn row(examples: &ImageEmbeddings, batch: &BatchId, index: u64, example: Option<u64>) -> u64 {
    let rows = examples.of_class(batch.class.0);
    if let Some(example) = example {
        return rows[example as usize % rows.len()];
    }
    rows[batch.key("condition/image", index).stream().below(rows.len() as u64) as usize]
}

/// What decides bits of the generator: its files, and where they are held rounded, how. Batches that come out finite have
/// the bits of autocasting either way; a retry in fp32 has not.
fn hash(files: &Identity, precision: Precision) -> Identity {
    match precision.autocast_kind() {
        None => files.clone(),
        Some(kind) => Identity::of(&format!("{files} matrices held in {kind:?}")),
    }
}

impl Source for LatentSource {
    fn hash(&self) -> &Identity {
        &self.hash
    }

    fn shape(&self) -> [i64; 3] {
        self.shape
    }

    fn train_steps(&self) -> i64 {
        self.pipeline.scheduler.schedule.num_train_timesteps
    }

    fn sampler(&self, config: &SamplerConfig) -> Result<Sampler> {
        let scheduler = &self.pipeline.scheduler;
        Sampler::new(&scheduler.schedule, scheduler.prediction, &scheduler.adapt(config))
    }

    fn bind<'s>(&'s self, batch: &BatchId, scale: f64) -> Result<Box<dyn Denoiser + 's>> {
        let count = batch.indices.len() as i64;
        let first = batch.indices.first().copied().unwrap_or(0);
        let text = self.text(&self.prompt(batch.class, first))?.expand([count, -1, -1], false);
        let condition = Condition { text, class_labels: self.class_labels(batch)? };
        let negative = self.text(&self.config.negative_prompt)?;
        Ok(Box::new(TextConditional::new(&self.pipeline.unet, condition, &negative, scale)?))
    }

    fn decoder(&self) -> Option<&dyn Decoder> {
        Some(&self.pipeline.decoder)
    }

    fn images(&self, diffused: Tensor) -> Tensor {
        let _span = trace::span("decode");
        let memory = DecodeMemory { sliced: self.config.sliced_decode, checkpointed: false };
        resize(&decode(&self.pipeline.decoder, &diffused, memory).to_kind(Kind::Float), self.stored)
    }

    fn condition(&self, batch: &BatchId, index: u64) -> Option<u64> {
        self.examples.as_ref().map(|examples| row(examples, batch, index, self.config.example))
    }

    fn recondition(&mut self, condition: &method::Condition) -> Result<()> {
        let config: ConditionConfig = condition.parse()?;
        config.check()?;
        if let Some(noising) = &self.pipeline.noising {
            noising.check_level(config.noise_level)?;
        }
        self.shape = self.pipeline.latent_shape(config.size.unwrap_or(self.pipeline.native_size()))?;
        self.sampled = config.size.unwrap_or(self.pipeline.native_size());
        self.config = config;
        Ok(())
    }

    fn prompt(&self, class: ClassId, index: u64) -> String {
        let group = self.groups.as_ref().and_then(|layout| layout.group_of(class, index));
        // Groups are numbered context by context within each class.
        let context = group.and_then(|group| self.contexts.get(group as usize % self.contexts.len().max(1)));
        self.config.prompt_of(&self.classes[class.0 as usize], context.map_or("", String::as_str))
    }

    fn resize_filter(&self) -> &str {
        if self.sampled == self.stored { "" } else { "bilinear antialiased" }
    }
}
