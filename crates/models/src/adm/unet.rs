//! The generator.

use super::attention::AttentionBlock;
use super::blocks::{Block, Layer, Resample};
use super::config::{AdmConfig, AdmShape, GROUPS};
use super::trunk::{Trunk, order, residual};
use equipoise_base::Result;
use equipoise_nn::layers::{BatchNorm2d, Conv2d, Conv2dConfig, GroupNorm};
use equipoise_nn::{Init, Module, Scope};
use tch::Tensor;

/// `UNetModel`: noisy image, time step and label to noise (or v, or image) and maybe a variance.
#[derive(Debug)]
pub struct AdmUNet {
    trunk: Trunk,
    output_blocks: Vec<Block>,
    out_norm: GroupNorm,
    out_conv: Conv2d,
    patch: i64,
}

impl AdmUNet {
    /// Creates the network under `scope`; output convolutions start at 0, as in the reference.
    ///
    /// # Errors
    /// 78 if the configuration does not fit the shape (see [`AdmConfig::check`]).
    pub fn new(scope: &Scope, config: &AdmConfig, shape: &AdmShape) -> Result<Self> {
        config.check(shape)?;
        let trunk = Trunk::new(scope, config, shape);
        let output_blocks = way_up(scope, config, &trunk.channels);
        let first = config.channels(0);
        let zero = Conv2dConfig { init: Some(Init::Constant(0.)), ..Conv2dConfig::same(3) };
        Ok(Self {
            output_blocks,
            out_norm: GroupNorm::new(&scope.sub("out.0"), GROUPS, first, 1e-5),
            out_conv: Conv2d::new(&scope.sub("out.2"), first, shape.out_channels * config.fold(), zero),
            patch: config.patch,
            trunk,
        })
    }

    /// `x` [N, C, H, W] in the kind of the weights, at time steps `t` [N] (any kind; may be fractional), with labels
    /// `y` [N] int64, to [N, out channels, H, W].
    ///
    /// # Panics
    /// If labels are given to an unconditional network or missing for a conditional one.
    pub fn forward(&self, x: &Tensor, t: &Tensor, y: Option<&Tensor>) -> Tensor {
        let emb = self.trunk.embed(t, y, x.kind());
        let (mut skips, mut hidden) = self.trunk.forward(x, &emb);
        for block in &self.output_blocks {
            // One skip per output block: both counts follow from the same configuration.
            let skip = skips.pop().unwrap_or_else(|| unreachable!("more output blocks than input blocks"));
            hidden = block.forward(&Tensor::cat(&[hidden, skip], 1), &emb);
        }
        let out = self.out_conv.forward(&self.out_norm.forward(&hidden).silu());
        if self.patch == 1 { out } else { out.pixel_shuffle(self.patch) }
    }
}

impl Module for AdmUNet {
    /// None: group norm has no running statistics.
    fn batch_norms(&self) -> Vec<&BatchNorm2d> {
        Vec::new()
    }
}

fn way_up(scope: &Scope, config: &AdmConfig, down: &[i64]) -> Vec<Block> {
    let scope = scope.sub("output_blocks");
    let mut skips = down.iter().rev();
    let mut current = down.last().copied().unwrap_or_default();
    let mut blocks = Vec::with_capacity(down.len());
    for level in (0..config.channel_mult.len()).rev() {
        let width = config.channels(level);
        for repeat in 0..=config.num_res_blocks {
            let place = scope.sub(blocks.len());
            let skip = skips.next().copied().unwrap_or_default();
            let mut layers = vec![residual(&place.sub(0), config, current + skip, width, Resample::Same)];
            current = width;
            if config.attention_resolutions.contains(&(1 << level)) {
                let heads = config.heads_upward(width);
                layers.push(Layer::Attention(AttentionBlock::new(
                    &place.sub(1),
                    width,
                    heads,
                    order(config),
                )));
            }
            if level > 0 && repeat == config.num_res_blocks {
                let place = place.sub(layers.len());
                layers.push(if config.resblock_updown {
                    residual(&place, config, width, width, Resample::Up)
                } else {
                    Layer::up(&place, width, config.conv_resample)
                });
            }
            blocks.push(Block(layers));
        }
    }
    blocks
}
