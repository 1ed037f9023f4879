//! The U-Net of latent diffusion: diffusers' `UNet2DConditionModel` as Stable Diffusion 1.x, 2.x and 2.1-unCLIP use it
//! (Rombach et al. 2022; Ramesh et al. 2022), with diffusers' parameter names.

mod blocks;
mod conditioning;
mod config;
mod transformer;

pub use conditioning::Conditioning;
pub use config::UNet2DConditionConfig;

use crate::blocks2d::Norm;
use crate::sinusoid::sinusoid;
use blocks::{Context, DownBlock, MidBlock, UpBlock};
use equipoise_base::Result;
use equipoise_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear};
use equipoise_nn::{Held, MemoryFormat, Params, Scope, mapped};
use equipoise_pretrained::Component;
use tch::{Device, Tensor};

/// Noisy latent image, time step, text and image embedding to noise (or v).
#[derive(Debug)]
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    half: i64,
    time_embedding: Embedding,
    class_embedding: Option<Embedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
}

/// `TimestepEmbedding`: linear, SiLU, linear.
#[derive(Debug)]
struct Embedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl Embedding {
    fn new(scope: &Scope, input: i64, output: i64) -> Self {
        Self {
            linear_1: Linear::new(&scope.sub("linear_1"), input, output),
            linear_2: Linear::new(&scope.sub("linear_2"), output, output),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.linear_2.forward(&self.linear_1.forward(x).silu())
    }
}

impl UNet2DConditionModel {
    /// Creates the network under `scope`.
    pub fn new(scope: &Scope, config: &UNet2DConditionConfig) -> Self {
        let widths = &config.block_out_channels;
        let (first, levels) = (widths[0], widths.len());
        let mut skips = vec![first];
        let (down, up) = (scope.sub("down_blocks"), scope.sub("up_blocks"));
        let conv_in = Conv2d::new(&scope.sub("conv_in"), config.in_channels, first, Conv2dConfig::same(3));
        let time_embedding = Embedding::new(&scope.sub("time_embedding"), first, config.embedding());
        let class_embedding = config
            .projection_class_embeddings_input_dim
            .map(|length| Embedding::new(&scope.sub("class_embedding"), length, config.embedding()));
        let down_blocks = (0..levels)
            .map(|level| {
                let input = widths[level.saturating_sub(1)];
                DownBlock::new(&down.sub(level), config, level, input, &mut skips)
            })
            .collect();
        let mid_block = MidBlock::new(&scope.sub("mid_block"), config);
        let up_blocks = (0..levels)
            .rev()
            .map(|level| {
                let below = widths[(level + 1).min(levels - 1)];
                UpBlock::new(&up.sub(levels - 1 - level), config, level, below, &mut skips)
            })
            .collect();
        let norm = Norm { groups: config.norm_num_groups, eps: config.norm_eps };
        Self {
            conv_in,
            half: first / 2,
            time_embedding,
            class_embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: norm.layer(&scope.sub("conv_norm_out"), first),
            conv_out: Conv2d::new(&scope.sub("conv_out"), first, config.out_channels, Conv2dConfig::same(3)),
            config: config.clone(),
        }
    }

    /// Loads a component as it is, frozen.
    ///
    /// # Errors
    /// 65 naming the file, and the key or tensor in it, that makes no such network; 74 if one cannot be read.
    pub fn open(component: &Component, held: impl Into<Held>, device: Device) -> Result<Self> {
        let source = component.config_path()?.display().to_string();
        let config = UNet2DConditionConfig::from_json(&source, component.config()?)?;
        let params = Params::for_loading(held, device).with_kernels(MemoryFormat::with_group_norms(device));
        let unet = Self::new(&params.root(), &config);
        mapped::load(&params, &component.weights()?, |name| Some(name.to_string()))?;
        params.freeze();
        Ok(unet)
    }

    /// The configuration.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// Whether it takes class labels besides the text.
    pub fn has_class_embedding(&self) -> bool {
        self.class_embedding.is_some()
    }

    /// `sample` [N, C, H, W] in the kind of the weights, at time steps `t` [N] or [1] (any kind), with text embeddings
    /// `text` [N, L, D] and, if it has a class embedding, `class_labels` [N, P], to [N, C, H, W].
    ///
    /// # Panics
    /// If labels are given to a network without class embedding or missing for one that has it.
    pub fn forward(
        &self,
        sample: &Tensor,
        t: &Tensor,
        text: &Tensor,
        class_labels: Option<&Tensor>,
    ) -> Tensor {
        let condition = Conditioning::new(text.shallow_clone(), class_labels.map(Tensor::shallow_clone));
        self.conditioned(sample, t, &condition)
    }

    /// [`UNet2DConditionModel::forward`] of one batch at one time step after another: what the conditions alone decide is
    /// computed once.
    ///
    /// # Panics
    /// As [`UNet2DConditionModel::forward`].
    pub fn conditioned(&self, sample: &Tensor, t: &Tensor, condition: &Conditioning) -> Tensor {
        let time = self.time_embedding.forward(&sinusoid(t, self.half).to_kind(sample.kind()));
        assert_eq!(
            self.has_class_embedding(),
            condition.has_class_labels(),
            "class labels if and only if the network has a class embedding"
        );
        let embed = |labels: &Tensor| match &self.class_embedding {
            Some(embed) => embed.forward(labels),
            None => unreachable!("asserted above"),
        };
        let embedding = match condition.class_embedding(embed) {
            Some(class) => time + class,
            None => time,
        };
        condition.begin();
        let context = Context { embedding: &embedding.silu(), condition };
        let mut x = self.conv_in.forward(sample);
        let mut skips = vec![x.shallow_clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &context, &mut skips);
        }
        x = self.mid_block.forward(&x, &context);
        for block in &self.up_blocks {
            x = block.forward(x, &context, &mut skips);
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_nn::Precision;
    use serde_json::{Value, json};
    use tch::Kind;

    /// stable-diffusion-2-1-unclip.
    fn unclip() -> Value {
        json!({
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": [5, 10, 20, 20],
            "class_embed_type": "projection",
            "cross_attention_dim": 1024,
            "projection_class_embeddings_input_dim": 2048,
            "sample_size": 96,
            "upcast_attention": true,
            "use_linear_projection": true,
        })
    }

    /// stable-diffusion-v1-5.
    fn version1() -> Value {
        json!({ "attention_head_dim": 8, "cross_attention_dim": 768 })
    }

    fn config(value: &Value) -> UNet2DConditionConfig {
        UNet2DConditionConfig::from_json("unet/config.json", value.clone()).unwrap()
    }

    #[test]
    fn parameter_counts_are_those_of_the_published_networks() {
        let mut version2 = unclip();
        version2["class_embed_type"] = Value::Null;
        for (value, count) in [(unclip(), 870_173_124), (version2, 865_910_724), (version1(), 859_520_964)] {
            let params = Params::for_shapes();
            let unet = UNet2DConditionModel::new(&params.root(), &config(&value));
            assert_eq!(params.count(), count, "{value}");
            assert_eq!(unet.has_class_embedding(), value["class_embed_type"].is_string());
        }
    }

    fn small(linear: bool, params: Params) -> UNet2DConditionModel {
        let value = json!({
            "attention_head_dim": [2, 4], "block_out_channels": [16, 32], "norm_num_groups": 8,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "cross_attention_dim": 12, "layers_per_block": [1, 2], "transformer_layers_per_block": 2,
            "use_linear_projection": linear,
        });
        let unet = UNet2DConditionModel::new(&params.root(), &config(&value));
        if !matches!(params.kind(), Kind::Double) {
            let start = Params::new(3, Kind::Float, Device::Cpu);
            let _ = UNet2DConditionModel::new(&start.root(), &config(&value));
            params.load("start", &start.all()).unwrap();
        }
        params.freeze();
        unet
    }

    /// Rounding the weights once gives the bits of rounding them each time; and without autocasting they are widened.
    #[test]
    fn matrices_held_short_give_the_bits_of_autocasting() {
        let values = |shape: &[i64], step: f64| {
            (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step)
                .sin()
                .view(shape)
        };
        let (x, text) = (values(&[2, 4, 8, 8], 0.3), values(&[2, 3, 12], 0.7));
        for precision in [Precision::Bf16, Precision::Fp16] {
            for linear in [false, true] {
                let held = |held: Held| small(linear, Params::for_loading(held, Device::Cpu));
                let (long, short) = (held(Kind::Float.into()), held(precision.into()));
                let run = |unet: &UNet2DConditionModel, within: Precision| {
                    let leaf = x.copy().set_requires_grad(true);
                    let t = Tensor::from_slice(&[500f32]);
                    let out = within.scope(Device::Cpu, || unet.forward(&leaf, &t, &text, None)).unwrap();
                    let total = out.to_kind(Kind::Float).square().sum(None::<Kind>);
                    (out.detach(), Tensor::run_backward(&[total], &[&leaf], false, false).remove(0))
                };
                assert_eq!(run(&long, precision), run(&short, precision), "{precision:?}");
                let (wide, exact) = (run(&short, Precision::Fp32), run(&long, Precision::Fp32));
                assert_eq!(wide.0.kind(), Kind::Float);
                assert!(wide.0.allclose(&exact.0, 0.05, 0.05, false) && wide.0 != exact.0, "{precision:?}");
            }
        }
    }

    /// Odd sizes, both projections; the samples of a batch never touch each other.
    #[test]
    fn samples_are_independent_at_any_size() {
        for linear in [false, true] {
            let unet = small(linear, Params::new(3, Kind::Double, Device::Cpu));
            let x =
                (Tensor::arange(2 * 4 * 5 * 7, (Kind::Double, Device::Cpu)) * 0.3).sin().view([2, 4, 5, 7]);
            let text = (Tensor::arange(2 * 3 * 12, (Kind::Double, Device::Cpu)) * 0.7).cos().view([2, 3, 12]);
            let both = unet.forward(&x, &Tensor::from_slice(&[500i64]), &text, None);
            assert_eq!(both.size(), x.size());
            let one =
                unet.forward(&x.narrow(0, 1, 1), &Tensor::from_slice(&[500i64]), &text.narrow(0, 1, 1), None);
            assert!(both.narrow(0, 1, 1).allclose(&one, 1e-10, 1e-10, false));
            let other = unet.forward(&x, &Tensor::from_slice(&[500i64]), &(&text * 2.), None);
            assert!(!both.allclose(&other, 1e-6, 1e-6, false), "the text has no effect");
        }
    }

    #[test]
    fn other_networks_are_refused_by_key() {
        for (key, value) in [
            ("down_block_types", json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"])),
            ("up_block_types", json!(["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"])),
            ("class_embed_type", json!("timestep")),
            ("projection_class_embeddings_input_dim", Value::Null),
            ("attention_head_dim", json!([5, 10])),
            ("addition_embed_type", json!("text_time")),
            ("block_out_channels", json!([320, 640, 1280, 1290])),
            ("mid_block_type", json!("UNetMidBlock2D")),
        ] {
            let mut file = unclip();
            file[key] = value;
            let error = UNet2DConditionConfig::from_json("unet/config.json", file).unwrap_err();
            assert_eq!(error.code(), equipoise_base::ExitCode::BadData);
            assert!(
                error.message().contains(if key == "block_out_channels" { "1290" } else { key }),
                "{error}"
            );
        }
    }
}
