//! The layers between resolutions and the residual block with its time embedding.

use super::attention::AttentionBlock;
use super::config::GROUPS;
use equipoise_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear};
use equipoise_nn::{Init, Scope};
use tch::Tensor;

/// What a residual block does to height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resample {
    /// Keeps them.
    Same,
    /// Doubles them (nearest).
    Up,
    /// Halves them (mean of 2 x 2).
    Down,
}

impl Resample {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Resample::Same => x.shallow_clone(),
            Resample::Up => {
                let size = x.size();
                x.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None)
            }
            Resample::Down => x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None),
        }
    }
}

/// `ResBlock`: norm, SiLU, convolution, twice, with the time embedding in between.
#[derive(Debug)]
pub(super) struct ResBlock {
    in_norm: GroupNorm,
    in_conv: Conv2d,
    emb: Linear,
    out_norm: GroupNorm,
    out_conv: Conv2d,
    skip: Option<Conv2d>,
    scale_shift: bool,
    resample: Resample,
}

impl ResBlock {
    /// `embedding` is the length of the time embedding; `scale_shift` chooses AdaGN.
    pub(super) fn new(
        scope: &Scope,
        (input, output): (i64, i64),
        embedding: i64,
        scale_shift: bool,
        resample: Resample,
    ) -> Self {
        let zero = Conv2dConfig { init: Some(Init::Constant(0.)), ..Conv2dConfig::same(3) };
        let skip = (input != output)
            .then(|| Conv2d::new(&scope.sub("skip_connection"), input, output, Conv2dConfig::same(1)));
        Self {
            in_norm: GroupNorm::new(&scope.sub("in_layers.0"), GROUPS, input, 1e-5),
            in_conv: Conv2d::new(&scope.sub("in_layers.2"), input, output, Conv2dConfig::same(3)),
            emb: Linear::new(
                &scope.sub("emb_layers.1"),
                embedding,
                if scale_shift { 2 * output } else { output },
            ),
            out_norm: GroupNorm::new(&scope.sub("out_layers.0"), GROUPS, output, 1e-5),
            out_conv: Conv2d::new(&scope.sub("out_layers.3"), output, output, zero),
            skip,
            scale_shift,
            resample,
        }
    }

    /// [N, in, H, W] to [N, out, H', W']; `emb` [N, E] has been through SiLU already.
    fn forward(&self, x: &Tensor, emb: &Tensor) -> Tensor {
        let hidden = self.in_conv.forward(&self.resample.apply(&self.in_norm.forward(x).silu()));
        let emb = self.emb.forward(emb).unsqueeze(-1).unsqueeze(-1);
        let hidden = if self.scale_shift {
            let parts = emb.chunk(2, 1);
            self.out_norm.forward(&hidden) * (&parts[0] + 1.) + &parts[1]
        } else {
            self.out_norm.forward(&(hidden + emb))
        };
        let hidden = self.out_conv.forward(&hidden.silu());
        let x = self.resample.apply(x);
        match &self.skip {
            Some(skip) => skip.forward(&x) + hidden,
            None => x + hidden,
        }
    }
}

/// One layer of a `TimestepEmbedSequential`.
#[derive(Debug)]
pub(super) enum Layer {
    Conv(Conv2d),
    Res(ResBlock),
    Attention(AttentionBlock),
    /// Resampling without the time embedding; with a convolution after it (up) or instead of it (down).
    Resample(Resample, Option<Conv2d>),
}

impl Layer {
    /// `Downsample`: a strided convolution named `op`, or pooling.
    pub(super) fn down(scope: &Scope, channels: i64, convolve: bool) -> Self {
        let config = Conv2dConfig { stride: 2, ..Conv2dConfig::same(3) };
        Layer::Resample(
            Resample::Down,
            convolve.then(|| Conv2d::new(&scope.sub("op"), channels, channels, config)),
        )
    }

    /// `Upsample`: nearest, then maybe a convolution named `conv`.
    pub(super) fn up(scope: &Scope, channels: i64, convolve: bool) -> Self {
        let config = Conv2dConfig::same(3);
        Layer::Resample(
            Resample::Up,
            convolve.then(|| Conv2d::new(&scope.sub("conv"), channels, channels, config)),
        )
    }

    fn forward(&self, x: &Tensor, emb: &Tensor) -> Tensor {
        match self {
            Layer::Conv(conv) => conv.forward(x),
            Layer::Res(block) => block.forward(x, emb),
            Layer::Attention(block) => block.forward(x),
            Layer::Resample(Resample::Down, Some(conv)) => conv.forward(x),
            Layer::Resample(resample, None) => resample.apply(x),
            Layer::Resample(resample, Some(conv)) => conv.forward(&resample.apply(x)),
        }
    }
}

/// Layers in sequence.
#[derive(Debug)]
pub(super) struct Block(pub(super) Vec<Layer>);

impl Block {
    /// `emb` [N, E] has been through SiLU already: every residual block would repeat it.
    pub(super) fn forward(&self, x: &Tensor, emb: &Tensor) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, layer| layer.forward(&x, emb))
    }
}
