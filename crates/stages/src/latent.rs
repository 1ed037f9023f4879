//! Images out of a latent diffusion: text of the class and, for unCLIP, the embedding of a random real image of it
//! (seed 002, Section 2.2).

use crate::inputs::{self, Images};
use crate::nets::DataShape;
use crate::source::{BatchId, Source};
use crate::step::Step;
use equipoise_base::{ClassId, Error, ExitCode, Identity, Result, ensure, trace};
use equipoise_config::method;
use equipoise_data::ImageSource as _;
use equipoise_diffusion::condition_config::ConditionConfig;
use equipoise_diffusion::decoder::{DecodeMemory, Decoder, decode};
use equipoise_diffusion::guidance::Denoiser;
use equipoise_diffusion::image_embedding::DropoutTarget;
use equipoise_diffusion::pipeline::{ImageConditioner, LatentDiffusion};
use equipoise_diffusion::sampler::{Sampler, SamplerConfig};
use equipoise_diffusion::text_conditional::{Condition, TextConditional};
use equipoise_diffusion::view::resize;
use equipoise_nn::runtime;
use equipoise_pretrained::Folder;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// A latent diffusion with what it is told about each image.
pub struct LatentSource {
    pipeline: LatentDiffusion,
    config: ConditionConfig,
    hash: Identity,
    classes: Vec<String>,
    /// Channels, height and width of a latent image.
    shape: [i64; 3],
    /// Height and width of a stored image.
    stored: [i64; 2],
    sampled: [i64; 2],
    examples: Option<Examples>,
    /// Embeddings of texts [1, L, D] that were asked for.
    texts: RefCell<BTreeMap<String, Tensor>>,
}

/// The real images that condition, and their embeddings [1, E] as far as they were asked for.
struct Examples {
    images: Images,
    /// Rows of each class.
    of_class: Vec<Vec<u64>>,
    embeddings: RefCell<BTreeMap<u64, Tensor>>,
}

impl Examples {
    /// # Errors
    /// 65 naming a class without real images.
    fn new(images: Images, classes: &[String], split: &str) -> Result<Self> {
        let mut of_class = vec![Vec::new(); classes.len()];
        for (row, &label) in images.set.labels.iter().enumerate() {
            if let Some(rows) = of_class.get_mut(label as usize) {
                rows.push(row as u64);
            }
        }
        let empty = of_class.iter().position(Vec::is_empty);
        ensure!(
            empty.is_none(),
            BadData,
            "split '{split}' has no image of class '{}', which unCLIP needs to condition on",
            empty.map_or("", |class| classes[class].as_str())
        );
        Ok(Self { images, of_class, embeddings: RefCell::default() })
    }

    /// The row that an image is conditioned on: a random one of its class.
    fn row(&self, batch: &BatchId, index: u64) -> u64 {
        let rows = &self.of_class[batch.class.0 as usize];
        rows[batch.key("condition/image", index).stream().below(rows.len() as u64) as usize]
    }

    /// Its embedding [1, E]. Images are embedded one by one, so that their company cannot change a bit.
    ///
    /// # Errors
    /// 65 if the image cannot be decoded.
    fn embedding(&self, conditioner: &ImageConditioner, row: u64) -> Result<Tensor> {
        if let Some(known) = self.embeddings.borrow().get(&row) {
            return Ok(known.shallow_clone());
        }
        let mut embedded = None;
        self.images.set.with_image(row as usize, &mut |image| {
            embedded = Some(conditioner.embed(&conditioner.pixel_values(image).unsqueeze(0)));
        })?;
        let embedded =
            embedded.ok_or_else(|| Error::new(ExitCode::Bug, format!("row {row} has no image")))?;
        self.embeddings.borrow_mut().insert(row, embedded.shallow_clone());
        Ok(embedded)
    }
}

impl LatentSource {
    /// Loads the folder of `[diffusion]`; `split` has the real images.
    ///
    /// # Errors
    /// 65 naming what is missing or damaged in the folder, or a class without real images; 78 if the condition does
    /// not fit the networks.
    pub fn open(
        step: &Step,
        folder: &Path,
        condition: &method::Condition,
        split: &str,
        shape: &DataShape,
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
        let mut pipeline = LatentDiffusion::open(&folder, Kind::Float, runtime::device())?;
        if shape.channels == 1 {
            pipeline.decoder = pipeline.decoder.grey();
        }
        let classes = step.classes()?;
        let examples = match &pipeline.images {
            Some(images) => {
                images.noising.check_level(config.noise_level)?;
                Some(Examples::new(inputs::split(step, split)?, &classes, split)?)
            }
            None => None,
        };
        let sampled = config.size.unwrap_or(pipeline.native_size());
        Ok(Self {
            shape: pipeline.latent_shape(sampled)?,
            stored: shape.size,
            hash: folder.identity()?,
            texts: RefCell::default(),
            pipeline,
            config,
            classes,
            sampled,
            examples,
        })
    }

    /// Embeddings [1, L, D] of a text, computed once.
    fn text(&self, text: &str) -> Result<Tensor> {
        if let Some(known) = self.texts.borrow().get(text) {
            return Ok(known.shallow_clone());
        }
        let embedded = self.pipeline.text_embeddings(&self.pipeline.tokenize(&[text])?);
        self.texts.borrow_mut().insert(text.to_string(), embedded.shallow_clone());
        Ok(embedded)
    }

    /// Class labels [N, 2E] of a batch: embeddings of real images, noised and thinned out.
    fn class_labels(&self, batch: &BatchId) -> Result<Option<Tensor>> {
        let (Some(conditioner), Some(examples)) = (&self.pipeline.images, &self.examples) else {
            return Ok(None);
        };
        let rows = batch.indices.iter().map(|&index| examples.row(batch, index));
        let embeddings: Vec<Tensor> =
            rows.map(|row| examples.embedding(conditioner, row)).collect::<Result<_>>()?;
        let width = conditioner.noising.width();
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
        let labels = conditioner.noising.class_labels(&embeddings, self.config.noise_level, &noise);
        Ok(Some(thin(labels, DropoutTarget::ClassLabel)))
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
        let text = self.text(&self.prompt(batch.class))?.expand([count, -1, -1], false);
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
        self.examples.as_ref().map(|examples| examples.row(batch, index))
    }

    fn prompt(&self, class: ClassId) -> String {
        self.config.prompt_of(&self.classes[class.0 as usize])
    }

    fn resize_filter(&self) -> &str {
        if self.sampled == self.stored { "" } else { "bilinear antialiased" }
    }
}
