//! A latent diffusion out of a Hugging Face folder: text-to-image (Stable Diffusion 1.x, 2.x) and unCLIP, which takes
//! an image besides the text (Ramesh et al. 2022; diffusers' `StableUnCLIPImg2ImgPipeline`).
//!
//! What samples and what embeds texts and images are loaded apart: embeddings are computed once, so sampling goes without
//! the towers, which are larger than the U-Net.

use crate::decoder::LatentDecoder;
use crate::image_embedding::ImageNoising;
use crate::scheduler_config::SchedulerConfig;
use equipoise_base::{Result, ensure};
use equipoise_data::ImageRef;
use equipoise_data::clip::{ClipImageProcessor, ClipTokenizer};
use equipoise_models::autoencoder_kl::AutoencoderKL;
use equipoise_models::clip::{ClipTextConfig, ClipTextModel, ClipVisionConfig, ClipVisionModel};
use equipoise_models::unet2d_condition::{UNet2DConditionConfig, UNet2DConditionModel};
use equipoise_nn::precision::full;
use equipoise_nn::{Held, Init, Params, mapped};
use equipoise_pretrained::{Component, Folder};
use tch::{Device, Kind, Tensor};

/// Components that decide the embedding of a text.
pub const TEXT_PARTS: [&str; 2] = ["text_encoder", "tokenizer"];
/// Components that decide the embedding of an image.
pub const IMAGE_PARTS: [&str; 2] = ["feature_extractor", "image_encoder"];

/// The networks of a folder that sample, loaded and frozen.
#[derive(Debug)]
pub struct LatentDiffusion {
    /// The U-Net.
    pub unet: UNet2DConditionModel,
    /// From latent images to images.
    pub decoder: LatentDecoder<AutoencoderKL>,
    /// Noise schedule, prediction and conventions of sampling.
    pub scheduler: SchedulerConfig,
    /// Normaliser and noise of image embeddings; `None` for text-to-image.
    pub noising: Option<ImageNoising>,
}

/// The part of a folder that reads texts.
#[derive(Debug)]
pub struct TextConditioner {
    tokenizer: ClipTokenizer,
    encoder: ClipTextModel,
    device: Device,
}

/// The part of unCLIP that looks at images.
#[derive(Debug)]
pub struct ImageConditioner {
    processor: ClipImageProcessor,
    encoder: ClipVisionModel,
    kind: Kind,
    device: Device,
}

/// Whether a folder's U-Net is conditioned on images besides the text.
///
/// # Errors
/// 65 naming the key of its configuration that makes no U-Net, or if it is missing.
pub fn takes_images(folder: &Folder) -> Result<bool> {
    let unet = folder.component("unet")?;
    let source = unet.config_path()?.display().to_string();
    let config = UNet2DConditionConfig::from_json(&source, unet.config()?)?;
    Ok(config.projection_class_embeddings_input_dim.is_some())
}

impl LatentDiffusion {
    /// Loads every component that sampling needs; a U-Net with class embedding needs the image part too.
    ///
    /// # Errors
    /// 65 naming the component, file, key or tensor that is missing, damaged or does not fit the others; 74 if a file
    /// cannot be read.
    pub fn open(folder: &Folder, held: impl Into<Held>, device: Device) -> Result<Self> {
        let held = held.into();
        let unet = UNet2DConditionModel::open(&folder.component("unet")?, held, device)?;
        let vae = AutoencoderKL::open(&folder.component("vae")?, held, device)?;
        let noising = match unet.has_class_embedding() {
            true => Some(noising(folder, held.vectors, device)?),
            false => None,
        };
        let scheduler = SchedulerConfig::open(&folder.component("scheduler")?)?;
        let this = Self { scheduler, decoder: LatentDecoder::new(vae), unet, noising };
        this.check(folder)?;
        Ok(this)
    }

    /// The components must have been made for each other.
    fn check(&self, folder: &Folder) -> Result<()> {
        let unet = self.unet.config();
        let text = text_config(&folder.component("text_encoder")?)?.transformer;
        let fits = |what: &str, have: i64, want: i64| -> Result<()> {
            let folder = folder.path().display();
            ensure!(have == want, BadData, "{folder}: {what} is {have}, the U-Net wants {want}");
            Ok(())
        };
        fits("the text encoder's width", text.hidden_size, unet.cross_attention_dim)?;
        fits("the autoencoder's number of latent channels", self.latent_channels(), unet.in_channels)?;
        fits("the number of channels that the U-Net predicts", unet.out_channels, unet.in_channels)?;
        if let (Some(noising), Some(width)) = (&self.noising, unet.projection_class_embeddings_input_dim) {
            fits("the noised image embedding's width", 2 * noising.width(), width)?;
        }
        Ok(())
    }

    fn latent_channels(&self) -> i64 {
        self.decoder.autoencoder().latent_shape([1, 1])[0]
    }

    /// Channels, height and width of the latent form of an image.
    ///
    /// # Errors
    /// 78 if the autoencoder cannot make images of this size.
    pub fn latent_shape(&self, size: [i64; 2]) -> Result<[i64; 3]> {
        let (vae, side) = (self.decoder.autoencoder(), self.decoder.autoencoder().downscale());
        ensure!(
            size.iter().all(|&pixels| pixels > 0 && pixels % side == 0),
            Config,
            "condition.size = {size:?}: want positive multiples of {side}"
        );
        Ok(vae.latent_shape(size))
    }

    /// Height and width in pixels that the U-Net was trained at.
    pub fn native_size(&self) -> [i64; 2] {
        [self.unet.config().sample_size * self.decoder.autoencoder().downscale(); 2]
    }
}

impl TextConditioner {
    /// Loads tokenizer and text encoder.
    ///
    /// # Errors
    /// As [`LatentDiffusion::open`].
    pub fn open(folder: &Folder, kind: Kind, device: Device) -> Result<Self> {
        let tokenizer = ClipTokenizer::open(&folder.component("tokenizer")?)?;
        let encoder = ClipTextModel::open(&folder.component("text_encoder")?, kind, device)?;
        let (have, want) = (tokenizer.vocab_size(), encoder.config().vocab_size);
        ensure!(
            have <= want,
            BadData,
            "{}: the tokenizer has {have} ids, the text encoder knows {want}",
            folder.path().display()
        );
        Ok(Self { tokenizer, encoder, device })
    }

    /// Tokens L of a text and width D of each embedding.
    pub fn shape(&self) -> [i64; 2] {
        [self.length() as i64, self.encoder.config().transformer.hidden_size]
    }

    fn length(&self) -> usize {
        let longest = self.encoder.config().max_position_embeddings as usize;
        self.tokenizer.max_length().unwrap_or(longest).min(longest)
    }

    /// Token ids [N, L] int64, cut and padded to the text encoder's length.
    ///
    /// # Errors
    /// 65 if the tokenizer cannot encode a text.
    pub fn tokenize(&self, texts: &[impl AsRef<str>]) -> Result<Tensor> {
        Ok(self.tokenizer.encode(texts, self.length())?.input_ids.to_device(self.device))
    }

    /// Token ids [N, L] to text embeddings [N, L, D]; never in a shorter format, so that it does not matter from where
    /// they are asked for.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        full(self.device, || tch::no_grad(|| self.encoder.forward(ids, None).last_hidden_state))
    }
}

impl ImageConditioner {
    /// Loads image processor and image encoder.
    ///
    /// # Errors
    /// As [`LatentDiffusion::open`].
    pub fn open(folder: &Folder, kind: Kind, device: Device) -> Result<Self> {
        let processor = ClipImageProcessor::open(&folder.component("feature_extractor")?)?;
        let encoder = ClipVisionModel::open(&folder.component("image_encoder")?, kind, device)?;
        Ok(Self { processor, encoder, kind, device })
    }

    /// Length E of an embedding.
    pub fn width(&self) -> i64 {
        self.encoder.config().transformer.projection_dim
    }

    /// An image of any size, as the encoder takes it: [3, height, width] float32.
    pub fn pixel_values(&self, image: ImageRef<'_>) -> Tensor {
        self.processor.process(image)
    }

    /// [N, 3, height, width] to CLIP embeddings [N, E], not normalised; never in a shorter format.
    pub fn embed(&self, pixel_values: &Tensor) -> Tensor {
        let pixel_values = pixel_values.to_kind(self.kind).to_device(self.device);
        full(self.device, || tch::no_grad(|| self.encoder.forward(&pixel_values).image_embeds))
    }
}

fn text_config(component: &Component) -> Result<ClipTextConfig> {
    ClipTextConfig::from_json(&component.config_path()?.display().to_string(), component.config()?)
}

/// How a folder normalises and noises the embeddings of its image encoder.
fn noising(folder: &Folder, kind: Kind, device: Device) -> Result<ImageNoising> {
    let scheduler = SchedulerConfig::open(&folder.component("image_noising_scheduler")?)?;
    let encoder = folder.component("image_encoder")?;
    let encoder =
        ClipVisionConfig::from_json(&encoder.config_path()?.display().to_string(), encoder.config()?)?;
    let width = encoder.transformer.projection_dim;
    let (mean, std) = normalizer(&folder.component("image_normalizer")?, width, kind, device)?;
    ImageNoising::new(mean, std, &scheduler.single()?)
}

/// Mean and standard deviation [1, width] of a `StableUnCLIPImageNormalizer`.
fn normalizer(component: &Component, width: i64, kind: Kind, device: Device) -> Result<(Tensor, Tensor)> {
    let params = Params::for_loading(kind, device);
    let row = |name: &str| params.root().param(name, &[1, width], Init::Constant(0.));
    let rows = (row("mean"), row("std"));
    mapped::load(&params, &component.weights()?, |name| Some(name.to_string()))?;
    params.freeze();
    Ok(rows)
}
