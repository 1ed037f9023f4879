//! What the U-Net and the encoder share: time embedding, the way down and the middle.

use super::attention::{AttentionBlock, Order};
use super::blocks::{Block, Layer, ResBlock, Resample};
use super::config::{AdmConfig, AdmShape};
use crate::sinusoid::sinusoid;
use equipoise_nn::Scope;
use equipoise_nn::layers::{Conv2d, Conv2dConfig, Embedding, Linear};
use tch::{Kind, Tensor};

/// Time and label embedding, `input_blocks` and `middle_block`.
#[derive(Debug)]
pub(super) struct Trunk {
    half: i64,
    time_first: Linear,
    time_second: Linear,
    label_emb: Option<Embedding>,
    input_blocks: Vec<Block>,
    middle_block: Block,
    patch: i64,
    /// Output channels of every input block.
    pub(super) channels: Vec<i64>,
}

impl Trunk {
    pub(super) fn new(scope: &Scope, config: &AdmConfig, shape: &AdmShape) -> Self {
        let embedding = config.embedding();
        let time = scope.sub("time_embed");
        let time_first = Linear::new(&time.sub(0), config.model_channels, embedding);
        let time_second = Linear::new(&time.sub(2), embedding, embedding);
        let label_emb = shape.labels.map(|rows| Embedding::new(&scope.sub("label_emb"), rows, embedding));
        let (input_blocks, channels) = way_down(scope, config, shape.in_channels * config.fold());
        let bottom = channels.last().copied().unwrap_or_default();
        Self {
            half: config.model_channels / 2,
            time_first,
            time_second,
            label_emb,
            input_blocks,
            middle_block: middle(&scope.sub("middle_block"), config, bottom),
            patch: config.patch,
            channels,
        }
    }

    /// SiLU of the embedding of `t` [N] (any kind) and, if conditional, of labels `y` [N]: [N, 4 base] of `kind`.
    ///
    /// # Panics
    /// If labels are given to an unconditional network or missing for a conditional one.
    pub(super) fn embed(&self, t: &Tensor, y: Option<&Tensor>, kind: Kind) -> Tensor {
        assert_eq!(
            y.is_some(),
            self.label_emb.is_some(),
            "labels if and only if the network is class-conditional"
        );
        let wave = sinusoid(t, self.half).to_kind(kind);
        let time = self.time_second.forward(&self.time_first.forward(&wave).silu());
        match (&self.label_emb, y) {
            (Some(table), Some(y)) => (time + table.forward(y)).silu(),
            _ => time.silu(),
        }
    }

    /// Output of every input block, in order, and of the middle block, for an image [N, C, H, W].
    pub(super) fn forward(&self, x: &Tensor, emb: &Tensor) -> (Vec<Tensor>, Tensor) {
        let mut outputs = Vec::with_capacity(self.input_blocks.len());
        let mut hidden = if self.patch == 1 { x.shallow_clone() } else { x.pixel_unshuffle(self.patch) };
        for block in &self.input_blocks {
            hidden = block.forward(&hidden, emb);
            outputs.push(hidden.shallow_clone());
        }
        let middle = self.middle_block.forward(&hidden, emb);
        (outputs, middle)
    }
}

/// Order of channels in attention.
pub(super) fn order(config: &AdmConfig) -> Order {
    if config.use_new_attention_order { Order::KindFirst } else { Order::HeadFirst }
}

fn way_down(scope: &Scope, config: &AdmConfig, inputs: i64) -> (Vec<Block>, Vec<i64>) {
    let scope = scope.sub("input_blocks");
    let mut current = config.channels(0);
    let first = Conv2d::new(&scope.sub(0).sub(0), inputs, current, Conv2dConfig::same(3));
    let (mut blocks, mut channels) = (vec![Block(vec![Layer::Conv(first)])], vec![current]);
    let levels = config.channel_mult.len();
    for level in 0..levels {
        let width = config.channels(level);
        for _ in 0..config.num_res_blocks {
            let place = scope.sub(blocks.len());
            let mut layers = vec![residual(&place.sub(0), config, current, width, Resample::Same)];
            if config.attention_resolutions.contains(&(1 << level)) {
                let heads = config.heads_down(width);
                layers.push(Layer::Attention(AttentionBlock::new(
                    &place.sub(1),
                    width,
                    heads,
                    order(config),
                )));
            }
            current = width;
            blocks.push(Block(layers));
            channels.push(current);
        }
        if level + 1 < levels {
            let place = scope.sub(blocks.len()).sub(0);
            blocks.push(Block(vec![if config.resblock_updown {
                residual(&place, config, current, current, Resample::Down)
            } else {
                Layer::down(&place, current, config.conv_resample)
            }]));
            channels.push(current);
        }
    }
    (blocks, channels)
}

fn middle(scope: &Scope, config: &AdmConfig, channels: i64) -> Block {
    let heads = config.heads_down(channels);
    Block(vec![
        residual(&scope.sub(0), config, channels, channels, Resample::Same),
        Layer::Attention(AttentionBlock::new(&scope.sub(1), channels, heads, order(config))),
        residual(&scope.sub(2), config, channels, channels, Resample::Same),
    ])
}

/// A residual block of this network.
pub(super) fn residual(
    scope: &Scope,
    config: &AdmConfig,
    input: i64,
    output: i64,
    resample: Resample,
) -> Layer {
    let (embedding, scale_shift) = (config.embedding(), config.use_scale_shift_norm);
    Layer::Res(ResBlock::new(scope, (input, output), embedding, scale_shift, resample))
}
