//! The autoencoder of latent diffusion: diffusers' `AutoencoderKL` (Rombach et al. 2022), with diffusers' parameter
//! names.

mod blocks;
mod config;

pub use config::AutoencoderKLConfig;

use blocks::{Level, MidBlock, norm};
use equipoise_base::Result;
use equipoise_nn::layers::{Conv2d, Conv2dConfig, GroupNorm};
use equipoise_nn::{Held, MemoryFormat, Params, Scope, mapped};
use equipoise_pretrained::Component;
use tch::{Device, Tensor};

/// Images [N, C, H, W] in [-1, 1] to latent images [N, L, h, w] and back.
#[derive(Debug)]
pub struct AutoencoderKL {
    encoder: Encoder,
    quant_conv: Conv2d,
    decoder: Decoder,
    scaling_factor: f64,
    downscale: i64,
    latent_channels: i64,
}

/// A diagonal normal distribution of latent images.
#[derive(Debug)]
pub struct Posterior {
    /// Mean [N, L, h, w].
    pub mean: Tensor,
    /// Logarithm of the variance [N, L, h, w], in [-30, 20].
    pub logvar: Tensor,
}

impl Posterior {
    /// mean + std noise, for standard normal `noise` of the same shape.
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.logvar * 0.5).exp() * noise
    }
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

#[derive(Debug)]
struct Decoder {
    post_quant_conv: Conv2d,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(scope: &Scope, config: &AutoencoderKLConfig) -> Self {
        let widths = &config.block_out_channels;
        let (first, bottom) = (widths[0], widths[widths.len() - 1]);
        let blocks = scope.sub("down_blocks");
        let level = |i: usize| {
            let channels = (widths[i.saturating_sub(1)], widths[i]);
            Level::down(&blocks.sub(i), config, channels, i + 1 == widths.len())
        };
        let outputs = 2 * config.latent_channels;
        Self {
            conv_in: Conv2d::new(&scope.sub("conv_in"), config.in_channels, first, Conv2dConfig::same(3)),
            down_blocks: (0..widths.len()).map(level).collect(),
            mid_block: MidBlock::new(&scope.sub("mid_block"), config, bottom),
            conv_norm_out: norm(config).layer(&scope.sub("conv_norm_out"), bottom),
            conv_out: Conv2d::new(&scope.sub("conv_out"), bottom, outputs, Conv2dConfig::same(3)),
        }
    }

    fn forward(&self, image: &Tensor) -> Tensor {
        let start = self.conv_in.forward(image);
        let x = self.down_blocks.iter().fold(start, |x, block| block.forward(&x));
        let x = self.mid_block.forward(&x);
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

impl Decoder {
    fn new(root: &Scope, config: &AutoencoderKLConfig) -> Self {
        let scope = root.sub("decoder");
        let widths: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let (bottom, last, latent) = (widths[0], widths[widths.len() - 1], config.latent_channels);
        let blocks = scope.sub("up_blocks");
        let level = |i: usize| {
            let channels = (widths[i.saturating_sub(1)], widths[i]);
            Level::up(&blocks.sub(i), config, channels, i + 1 == widths.len())
        };
        Self {
            post_quant_conv: Conv2d::new(&root.sub("post_quant_conv"), latent, latent, Conv2dConfig::same(1)),
            conv_in: Conv2d::new(&scope.sub("conv_in"), latent, bottom, Conv2dConfig::same(3)),
            mid_block: MidBlock::new(&scope.sub("mid_block"), config, bottom),
            up_blocks: (0..widths.len()).map(level).collect(),
            conv_norm_out: norm(config).layer(&scope.sub("conv_norm_out"), last),
            conv_out: Conv2d::new(&scope.sub("conv_out"), last, config.out_channels, Conv2dConfig::same(3)),
        }
    }

    fn segment(&self, index: usize, x: &Tensor) -> Tensor {
        match index {
            0 => self.mid_block.forward(&self.conv_in.forward(&self.post_quant_conv.forward(x))),
            index => match self.up_blocks.get(index - 1) {
                Some(block) => block.forward(x),
                None => self.conv_out.forward(&self.conv_norm_out.forward(x).silu()),
            },
        }
    }
}

impl AutoencoderKL {
    /// Creates the network under `scope`.
    pub fn new(scope: &Scope, config: &AutoencoderKLConfig) -> Self {
        let moments = 2 * config.latent_channels;
        Self {
            encoder: Encoder::new(&scope.sub("encoder"), config),
            quant_conv: Conv2d::new(&scope.sub("quant_conv"), moments, moments, Conv2dConfig::same(1)),
            decoder: Decoder::new(scope, config),
            scaling_factor: config.scaling_factor,
            downscale: config.downscale(),
            latent_channels: config.latent_channels,
        }
    }

    /// Loads a component as it is, frozen.
    ///
    /// # Errors
    /// 65 naming the file, and the key or tensor in it, that makes no autoencoder; 74 if one cannot be read.
    pub fn open(component: &Component, held: impl Into<Held>, device: Device) -> Result<Self> {
        let source = component.config_path()?.display().to_string();
        let config = AutoencoderKLConfig::from_json(&source, component.config()?)?;
        let params = Params::for_loading(held, device).with_kernels(MemoryFormat::with_group_norms(device));
        let vae = Self::new(&params.root(), &config);
        mapped::load(&params, &component.weights()?, state_name)?;
        params.freeze();
        Ok(vae)
    }

    /// What latent images are multiplied by before diffusion.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    /// Channels, height and width of the latent form of an image of `height` x `width` pixels.
    pub fn latent_shape(&self, [height, width]: [i64; 2]) -> [i64; 3] {
        [self.latent_channels, height / self.downscale, width / self.downscale]
    }

    /// Pixels along one side of a latent pixel.
    pub fn downscale(&self) -> i64 {
        self.downscale
    }

    /// Images in [-1, 1] to the distribution of their latent form, not scaled.
    pub fn encode(&self, image: &Tensor) -> Posterior {
        let moments = self.quant_conv.forward(&self.encoder.forward(image)).chunk(2, 1);
        Posterior { mean: moments[0].shallow_clone(), logvar: moments[1].clamp(-30., 20.) }
    }

    /// Latent images, not scaled, to images: nominally in [-1, 1], not clamped.
    pub fn decode(&self, latent: &Tensor) -> Tensor {
        (0..self.segments()).fold(latent.shallow_clone(), |x, index| self.decode_segment(index, &x))
    }

    /// Number of parts of [`AutoencoderKL::decode`], between which little needs to be remembered.
    pub fn segments(&self) -> usize {
        self.decoder.up_blocks.len() + 2
    }

    /// One part of [`AutoencoderKL::decode`]; `index` counts from 0.
    pub fn decode_segment(&self, index: usize, x: &Tensor) -> Tensor {
        self.decoder.segment(index, x)
    }
}

/// Our name of a tensor of a file: diffusers renamed the attention in 0.15.
fn state_name(name: &str) -> Option<String> {
    const OLD: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    let name = name.to_string();
    if !name.contains(".mid_block.attentions.0.") {
        return Some(name);
    }
    Some(OLD.iter().fold(name, |name, (old, new)| name.replace(old, new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tch::Kind;

    fn types(kind: &str, levels: usize) -> Value {
        json!(vec![kind; levels])
    }

    /// The autoencoder of every Stable Diffusion 1.x and 2.x.
    fn published() -> Value {
        json!({
            "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 768,
            "down_block_types": types("DownEncoderBlock2D", 4), "up_block_types": types("UpDecoderBlock2D", 4),
        })
    }

    fn config(value: Value) -> AutoencoderKLConfig {
        AutoencoderKLConfig::from_json("vae/config.json", value).unwrap()
    }

    #[test]
    fn the_parameter_count_is_that_of_the_published_network() {
        let params = Params::for_shapes();
        let vae = AutoencoderKL::new(&params.root(), &config(published()));
        assert_eq!(params.count(), 83_653_863);
        assert_eq!((vae.latent_shape([768, 512]), vae.scaling_factor()), ([4, 96, 64], 0.18215));
    }

    #[test]
    fn shapes_and_old_names() {
        let small = json!({ "block_out_channels": [8, 16], "norm_num_groups": 4 });
        let params = Params::new(1, Kind::Float, Device::Cpu);
        let vae = AutoencoderKL::new(&params.root(), &config(small));
        let posterior = vae.encode(&Tensor::ones([2, 3, 16, 8], (Kind::Float, Device::Cpu)));
        assert_eq!(posterior.mean.size(), [2, 4, 8, 4]);
        assert_eq!(vae.decode(&posterior.mean).size(), [2, 3, 16, 8]);
        for (name, _) in params.all() {
            let old = name.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value");
            assert_eq!(state_name(&old.replace("to_out.0", "proj_attn")), Some(name));
        }
    }

    #[test]
    fn other_networks_are_refused_by_key() {
        for (key, value) in [
            ("block_out_channels", json!([128, 250, 512, 512])),
            ("down_block_types", types("AttnDownEncoderBlock2D", 4)),
            ("scaling_factor", json!(0)),
            ("latents_mean", json!([0.5])),
            ("use_quant_conv", json!(false)),
        ] {
            let mut file = published();
            file[key] = value;
            let error = AutoencoderKLConfig::from_json("vae/config.json", file).unwrap_err();
            assert!(
                error.message().contains(if key == "block_out_channels" { "250" } else { key }),
                "{error}"
            );
        }
    }
}
