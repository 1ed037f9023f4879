//! A latent diffusion out of a Hugging Face folder: text-to-image (Stable Diffusion 1.x, 2.x) and unCLIP, which takes
//! an image besides the text (Ramesh et al. 2022; diffusers' `StableUnCLIPImg2ImgPipeline`).

use crate::decoder::LatentDecoder;
use crate::image_embedding::ImageNoising;
use crate::scheduler_config::SchedulerConfig;
use equipoise_base::{Result, ensure};
use equipoise_data::ImageRef;
use equipoise_data::clip::{ClipImageProcessor, ClipTokenizer};
use equipoise_models::autoencoder_kl::AutoencoderKL;
use equipoise_models::clip::{ClipTextModel, ClipVisionModel};
use equipoise_models::unet2d_condition::UNet2DConditionModel;
use equipoise_nn::precision::full;
use equipoise_nn::{Init, Params, mapped};
use equipoise_pretrained::{Component, Folder};
use tch::{Device, Kind, Tensor};

/// The networks of a folder, loaded and frozen.
#[derive(Debug)]
pub struct LatentDiffusion {
    /// The U-Net.
    pub unet: UNet2DConditionModel,
    /// From latent images to images.
    pub decoder: LatentDecoder<AutoencoderKL>,
    /// Noise schedule, prediction and conventions of sampling.
    pub scheduler: SchedulerConfig,
    /// How an image becomes a condition; `None` for text-to-image.
    pub images: Option<ImageConditioner>,
    tokenizer: ClipTokenizer,
    text_encoder: ClipTextModel,
    device: Device,
}

/// The part of unCLIP that looks at images.
#[derive(Debug)]
pub struct ImageConditioner {
    /// Normaliser and noise of embeddings.
    pub noising: ImageNoising,
    processor: ClipImageProcessor,
    encoder: ClipVisionModel,
    device: Device,
}

impl LatentDiffusion {
    /// Loads every component that sampling needs, in `kind`; a U-Net with class embedding needs the image part too.
    ///
    /// # Errors
    /// 65 naming the component, file, key or tensor that is missing, damaged or does not fit the others; 74 if a file
    /// cannot be read.
    pub fn open(folder: &Folder, kind: Kind, device: Device) -> Result<Self> {
        let unet = UNet2DConditionModel::open(&folder.component("unet")?, kind, device)?;
        let vae = AutoencoderKL::open(&folder.component("vae")?, kind, device)?;
        let images = match unet.has_class_embedding() {
            true => Some(ImageConditioner::open(folder, kind, device)?),
            false => None,
        };
        let this = Self {
            scheduler: SchedulerConfig::open(&folder.component("scheduler")?)?,
            tokenizer: ClipTokenizer::open(&folder.component("tokenizer")?)?,
            text_encoder: ClipTextModel::open(&folder.component("text_encoder")?, kind, device)?,
            decoder: LatentDecoder::new(vae),
            unet,
            images,
            device,
        };
        this.check(&folder.path().display().to_string())?;
        Ok(this)
    }

    /// The components must have been made for each other.
    fn check(&self, folder: &str) -> Result<()> {
        let unet = self.unet.config();
        let text = &self.text_encoder.config().transformer;
        let fits = |what: &str, have: i64, want: i64| -> Result<()> {
            ensure!(have == want, BadData, "{folder}: {what} is {have}, the U-Net wants {want}");
            Ok(())
        };
        fits("the text encoder's width", text.hidden_size, unet.cross_attention_dim)?;
        fits("the autoencoder's number of latent channels", self.latent_channels(), unet.in_channels)?;
        fits("the number of channels that the U-Net predicts", unet.out_channels, unet.in_channels)?;
        if let (Some(images), Some(width)) = (&self.images, unet.projection_class_embeddings_input_dim) {
            fits("the noised image embedding's width", 2 * images.noising.width(), width)?;
        }
        let (have, want) = (self.tokenizer.vocab_size(), self.text_encoder.config().vocab_size);
        ensure!(
            have <= want,
            BadData,
            "{folder}: the tokenizer has {have} ids, the text encoder knows {want}"
        );
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

    /// Token ids [N, L] int64, cut and padded to the text encoder's length.
    ///
    /// # Errors
    /// 65 if the tokenizer cannot encode a text.
    pub fn tokenize(&self, texts: &[impl AsRef<str>]) -> Result<Tensor> {
        let longest = self.text_encoder.config().max_position_embeddings as usize;
        let length = self.tokenizer.max_length().unwrap_or(longest).min(longest);
        Ok(self.tokenizer.encode(texts, length)?.input_ids.to_device(self.device))
    }

    /// Token ids [N, L] to text embeddings [N, L, D]; never in a shorter format, so that it does not matter from where
    /// they are asked for first.
    pub fn text_embeddings(&self, ids: &Tensor) -> Tensor {
        full(self.device, || tch::no_grad(|| self.text_encoder.forward(ids, None).last_hidden_state))
    }
}

impl ImageConditioner {
    fn open(folder: &Folder, kind: Kind, device: Device) -> Result<Self> {
        let scheduler = SchedulerConfig::open(&folder.component("image_noising_scheduler")?)?;
        let encoder = ClipVisionModel::open(&folder.component("image_encoder")?, kind, device)?;
        let width = encoder.config().transformer.projection_dim;
        let (mean, std) = normalizer(&folder.component("image_normalizer")?, width, kind, device)?;
        Ok(Self {
            noising: ImageNoising::new(mean, std, &scheduler.single()?)?,
            processor: ClipImageProcessor::open(&folder.component("feature_extractor")?)?,
            encoder,
            device,
        })
    }

    /// An image of any size, as the encoder takes it: [3, height, width] float32.
    pub fn pixel_values(&self, image: ImageRef<'_>) -> Tensor {
        self.processor.process(image)
    }

    /// [N, 3, height, width] to CLIP embeddings [N, E], not normalised; never in a shorter format.
    pub fn embed(&self, pixel_values: &Tensor) -> Tensor {
        let pixel_values = pixel_values.to_kind(self.noising.kind()).to_device(self.device);
        full(self.device, || tch::no_grad(|| self.encoder.forward(&pixel_values).image_embeds))
    }
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
