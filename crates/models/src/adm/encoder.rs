//! The classifier of noisy images.

use super::attention::AttentionPool;
use super::config::{AdmConfig, AdmPool, AdmShape, GROUPS};
use super::trunk::Trunk;
use equipoise_base::{Result, ensure};
use equipoise_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear};
use equipoise_nn::{Init, Scope};
use tch::Tensor;

/// Width of the hidden layer of the spatial heads.
const SPATIAL_HIDDEN: i64 = 2048;

/// `EncoderUNetModel`: noisy image and time step to logits; guides a diffusion by its gradient.
#[derive(Debug)]
pub struct AdmEncoder {
    trunk: Trunk,
    head: Head,
}

#[derive(Debug)]
enum Head {
    Adaptive(GroupNorm, Conv2d),
    Attention(GroupNorm, AttentionPool),
    Spatial(Linear, Option<GroupNorm>, Linear),
}

impl AdmEncoder {
    /// Creates the network under `scope`; `shape.out_channels` is the number of logits.
    ///
    /// # Errors
    /// 78 if the configuration does not fit the shape, has labels, or lacks the head width that attention pooling
    /// needs.
    pub fn new(scope: &Scope, config: &AdmConfig, shape: &AdmShape, pool: AdmPool) -> Result<Self> {
        config.check(shape)?;
        ensure!(shape.labels.is_none(), Config, "an ADM encoder takes no labels");
        let trunk = Trunk::new(scope, config, shape);
        let bottom = trunk.channels.last().copied().unwrap_or_default();
        let scope = scope.sub("out");
        let norm = || GroupNorm::new(&scope.sub(0), GROUPS, bottom, 1e-5);
        let classes = shape.out_channels;
        let head = match pool {
            AdmPool::Adaptive => {
                let zero = Conv2dConfig { init: Some(Init::Constant(0.)), ..Conv2dConfig::same(1) };
                Head::Adaptive(norm(), Conv2d::new(&scope.sub(3), bottom, classes, zero))
            }
            AdmPool::Attention => {
                ensure!(
                    config.num_head_channels > 0,
                    Config,
                    "pool 'attention' needs num_head_channels, not num_heads"
                );
                let side = shape.image_size / (config.patch << (config.channel_mult.len() - 1));
                let heads = bottom / config.num_head_channels;
                Head::Attention(norm(), AttentionPool::new(&scope.sub(2), side, bottom, heads, classes))
            }
            AdmPool::Spatial | AdmPool::SpatialV2 => {
                let features = trunk.channels.iter().sum::<i64>() + bottom;
                let first = Linear::new(&scope.sub(0), features, SPATIAL_HIDDEN);
                let norm = (pool == AdmPool::SpatialV2)
                    .then(|| GroupNorm::new(&scope.sub(1), GROUPS, SPATIAL_HIDDEN, 1e-5));
                let last = if norm.is_some() { 3 } else { 2 };
                Head::Spatial(first, norm, Linear::new(&scope.sub(last), SPATIAL_HIDDEN, classes))
            }
        };
        Ok(Self { trunk, head })
    }

    /// `x` [N, C, H, W] in the kind of the weights, at time steps `t` [N], to logits [N, classes].
    pub fn forward(&self, x: &Tensor, t: &Tensor) -> Tensor {
        let (blocks, bottom) = self.trunk.forward(x, &self.trunk.embed(t, None, x.kind()));
        match &self.head {
            Head::Adaptive(norm, conv) => conv
                .forward(&norm.forward(&bottom).silu().mean_dim([2i64, 3].as_slice(), true, None))
                .flatten(1, -1),
            Head::Attention(norm, pool) => pool.forward(&norm.forward(&bottom).silu()),
            Head::Spatial(first, norm, last) => {
                let means: Vec<Tensor> = blocks
                    .iter()
                    .chain([&bottom])
                    .map(|map| map.mean_dim([2i64, 3].as_slice(), false, None))
                    .collect();
                let hidden = first.forward(&Tensor::cat(&means, 1));
                last.forward(&match norm {
                    Some(norm) => norm.forward(&hidden).silu(),
                    None => hidden.relu(),
                })
            }
        }
    }
}
