//! What encoder and decoder are made of.

use super::config::AutoencoderKLConfig;
use crate::blocks2d::{Downsample2D, Norm, ResnetBlock2D, Upsample2D, attend, map_of, rows_of};
use equipoise_nn::Scope;
use equipoise_nn::layers::{GroupNorm, Linear};
use tch::Tensor;

/// The group norms of this network.
pub(super) fn norm(config: &AutoencoderKLConfig) -> Norm {
    Norm { groups: config.norm_num_groups, eps: 1e-6 }
}

fn resnet(scope: &Scope, config: &AutoencoderKLConfig, channels: (i64, i64)) -> ResnetBlock2D {
    ResnetBlock2D::new(scope, channels, None, norm(config))
}

/// `Attention` of the middle: one head over all positions, residual.
#[derive(Debug)]
struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn new(scope: &Scope, config: &AutoencoderKLConfig, channels: i64) -> Self {
        let linear = |scope: &Scope| Linear::new(scope, channels, channels);
        Self {
            group_norm: norm(config).layer(&scope.sub("group_norm"), channels),
            to_q: linear(&scope.sub("to_q")),
            to_k: linear(&scope.sub("to_k")),
            to_v: linear(&scope.sub("to_v")),
            to_out: linear(&scope.sub("to_out").sub(0)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let rows = rows_of(&self.group_norm.forward(x));
        let (key, value) = (self.to_k.forward(&rows), self.to_v.forward(&rows));
        let mixed = attend(&self.to_q.forward(&rows), &key, &value, 1);
        x + map_of(&self.to_out.forward(&mixed), x)
    }
}

/// `UNetMidBlock2D`.
#[derive(Debug)]
pub(super) struct MidBlock {
    resnets: [ResnetBlock2D; 2],
    attention: Attention,
}

impl MidBlock {
    pub(super) fn new(scope: &Scope, config: &AutoencoderKLConfig, channels: i64) -> Self {
        Self {
            resnets: [0, 1].map(|i| resnet(&scope.sub("resnets").sub(i), config, (channels, channels))),
            attention: Attention::new(&scope.sub("attentions").sub(0), config, channels),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second] = &self.resnets;
        second.forward(&self.attention.forward(&first.forward(x, None)), None)
    }
}

/// What a level does to height and width after its residual blocks.
#[derive(Debug)]
enum Resample {
    Same,
    Down(Downsample2D),
    Up(Upsample2D),
}

/// `DownEncoderBlock2D` and `UpDecoderBlock2D`.
#[derive(Debug)]
pub(super) struct Level {
    resnets: Vec<ResnetBlock2D>,
    resample: Resample,
}

impl Level {
    fn new(
        scope: &Scope,
        config: &AutoencoderKLConfig,
        (input, output): (i64, i64),
        layers: i64,
        resample: Resample,
    ) -> Self {
        let resnets = (0..layers)
            .map(|i| {
                let from = if i == 0 { input } else { output };
                resnet(&scope.sub("resnets").sub(i), config, (from, output))
            })
            .collect();
        Self { resnets, resample }
    }

    /// A level of the encoder; all but the last halve height and width.
    pub(super) fn down(
        scope: &Scope,
        config: &AutoencoderKLConfig,
        channels: (i64, i64),
        last: bool,
    ) -> Self {
        let resample = match last {
            true => Resample::Same,
            false => Resample::Down(Downsample2D::new(&scope.sub("downsamplers").sub(0), channels.1, true)),
        };
        Self::new(scope, config, channels, config.layers_per_block, resample)
    }

    /// A level of the decoder; all but the last double height and width.
    pub(super) fn up(scope: &Scope, config: &AutoencoderKLConfig, channels: (i64, i64), last: bool) -> Self {
        let resample = match last {
            true => Resample::Same,
            false => Resample::Up(Upsample2D::new(&scope.sub("upsamplers").sub(0), channels.1)),
        };
        Self::new(scope, config, channels, config.layers_per_block + 1, resample)
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.resnets.iter().fold(x.shallow_clone(), |x, resnet| resnet.forward(&x, None));
        match &self.resample {
            Resample::Same => x,
            Resample::Down(downsample) => downsample.forward(&x),
            Resample::Up(upsample) => {
                let size = x.size();
                upsample.forward(&x, [2 * size[2], 2 * size[3]])
            }
        }
    }
}
