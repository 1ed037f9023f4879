//! The levels of the U-Net.

use super::conditioning::Conditioning;
use super::config::UNet2DConditionConfig;
use super::transformer::{AttentionShape, Transformer2D};
use crate::blocks2d::{Downsample2D, Norm, ResnetBlock2D, Upsample2D};
use equipoise_nn::Scope;
use tch::Tensor;

/// What every block is told besides the map.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// SiLU of the time embedding [N, E].
    pub(super) embedding: &'a Tensor,
    /// Text embeddings.
    pub(super) condition: &'a Conditioning,
}

/// A residual block and, in levels that attend, a transformer.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2D>,
}

impl Layer {
    fn new(
        scope: &Scope,
        config: &UNet2DConditionConfig,
        level: usize,
        index: usize,
        channels: (i64, i64),
    ) -> Self {
        let resnet = resnet(&scope.sub("resnets").sub(index), config, channels);
        let attention =
            config.attention[level].then(|| transformer(&scope.sub("attentions").sub(index), config, level));
        Self { resnet, attention }
    }

    fn forward(&self, x: &Tensor, context: &Context) -> Tensor {
        let x = self.resnet.forward(x, Some(context.embedding));
        match &self.attention {
            Some(attention) => attention.forward(&x, context.condition),
            None => x,
        }
    }
}

fn resnet(scope: &Scope, config: &UNet2DConditionConfig, channels: (i64, i64)) -> ResnetBlock2D {
    let norm = Norm { groups: config.norm_num_groups, eps: config.norm_eps };
    ResnetBlock2D::new(scope, channels, Some(config.embedding()), norm)
}

fn transformer(scope: &Scope, config: &UNet2DConditionConfig, level: usize) -> Transformer2D {
    let shape = AttentionShape {
        channels: config.block_out_channels[level],
        heads: config.attention_heads[level],
        text: config.cross_attention_dim,
        upcast: config.upcast_attention,
    };
    let layers = config.transformer_layers_per_block[level];
    Transformer2D::new(scope, shape, config.norm_num_groups, layers, config.use_linear_projection)
}

/// `DownBlock2D` and `CrossAttnDownBlock2D`.
#[derive(Debug)]
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Downsample2D>,
}

impl DownBlock {
    /// Level `level` with `input` channels; appends the channels of every map that the way up will ask for.
    pub(super) fn new(
        scope: &Scope,
        config: &UNet2DConditionConfig,
        level: usize,
        input: i64,
        skips: &mut Vec<i64>,
    ) -> Self {
        let width = config.block_out_channels[level];
        let count = config.layers_per_block[level] as usize;
        let from = |index| if index == 0 { input } else { width };
        let layers =
            (0..count).map(|i| Layer::new(scope, config, level, i, (from(i), width))).collect::<Vec<_>>();
        let downsample = (level + 1 < config.block_out_channels.len())
            .then(|| Downsample2D::new(&scope.sub("downsamplers").sub(0), width, false));
        skips.extend(vec![width; count + usize::from(downsample.is_some())]);
        Self { layers, downsample }
    }

    /// Appends the output of every layer to `skips`.
    pub(super) fn forward(&self, x: Tensor, context: &Context, skips: &mut Vec<Tensor>) -> Tensor {
        let mut x = x;
        for layer in &self.layers {
            x = layer.forward(&x, context);
            skips.push(x.shallow_clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x);
            skips.push(x.shallow_clone());
        }
        x
    }
}

/// `UNetMidBlock2DCrossAttn`.
#[derive(Debug)]
pub(super) struct MidBlock {
    resnets: [ResnetBlock2D; 2],
    attention: Transformer2D,
}

impl MidBlock {
    pub(super) fn new(scope: &Scope, config: &UNet2DConditionConfig) -> Self {
        let level = config.block_out_channels.len() - 1;
        let width = config.block_out_channels[level];
        let resnets = [0, 1].map(|i| resnet(&scope.sub("resnets").sub(i), config, (width, width)));
        Self { resnets, attention: transformer(&scope.sub("attentions").sub(0), config, level) }
    }

    pub(super) fn forward(&self, x: &Tensor, context: &Context) -> Tensor {
        let [first, second] = &self.resnets;
        let x = self.attention.forward(&first.forward(x, Some(context.embedding)), context.condition);
        second.forward(&x, Some(context.embedding))
    }
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`.
#[derive(Debug)]
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample2D>,
}

impl UpBlock {
    /// Level `level` with `input` channels from below; takes the channels of its skips from the end of `skips`.
    pub(super) fn new(
        scope: &Scope,
        config: &UNet2DConditionConfig,
        level: usize,
        input: i64,
        skips: &mut Vec<i64>,
    ) -> Self {
        let width = config.block_out_channels[level];
        let count = config.layers_per_block[level] as usize + 1;
        let layers = (0..count)
            .map(|i| {
                let below = if i == 0 { input } else { width };
                let channels = (below + skips.pop().unwrap_or_default(), width);
                Layer::new(scope, config, level, i, channels)
            })
            .collect();
        let upsample = (level > 0).then(|| Upsample2D::new(&scope.sub("upsamplers").sub(0), width));
        Self { layers, upsample }
    }

    /// Takes its skips from the end of `skips`; grows to the size of the next one.
    pub(super) fn forward(&self, x: Tensor, context: &Context, skips: &mut Vec<Tensor>) -> Tensor {
        let mut x = x;
        for layer in &self.layers {
            // One skip per layer: both counts follow from the same configuration.
            let skip = skips.pop().unwrap_or_else(|| unreachable!("more layers up than down"));
            x = layer.forward(&Tensor::cat(&[x, skip], 1), context);
        }
        match (&self.upsample, skips.last().map(Tensor::size)) {
            (Some(upsample), Some(size)) => upsample.forward(&x, [size[2], size[3]]),
            _ => x,
        }
    }
}
