//! Blocks that the networks of latent diffusion share, with diffusers' parameter names.

use equipoise_nn::Scope;
use equipoise_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear};
use tch::Tensor;

/// `ResnetBlock2D`: group norm, SiLU, convolution, twice, with the time embedding in between if there is one.
#[derive(Debug)]
pub(crate) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

/// What the group norms of a network have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) groups: i64,
    pub(crate) eps: f64,
}

impl Norm {
    /// A group norm over `channels`.
    pub(crate) fn layer(self, scope: &Scope, channels: i64) -> GroupNorm {
        GroupNorm::new(scope, self.groups, channels, self.eps)
    }
}

impl ResnetBlock2D {
    /// `embedding` is the length of the time embedding, if the network has one.
    pub(crate) fn new(
        scope: &Scope,
        (input, output): (i64, i64),
        embedding: Option<i64>,
        norm: Norm,
    ) -> Self {
        let conv =
            |name, input, kernel| Conv2d::new(&scope.sub(name), input, output, Conv2dConfig::same(kernel));
        Self {
            norm1: norm.layer(&scope.sub("norm1"), input),
            conv1: conv("conv1", input, 3),
            time_emb_proj: embedding.map(|from| Linear::new(&scope.sub("time_emb_proj"), from, output)),
            norm2: norm.layer(&scope.sub("norm2"), output),
            conv2: conv("conv2", output, 3),
            conv_shortcut: (input != output).then(|| conv("conv_shortcut", input, 1)),
        }
    }

    /// [N, in, H, W] to [N, out, H, W]; `embedding` [N, E] has been through SiLU already.
    pub(crate) fn forward(&self, x: &Tensor, embedding: Option<&Tensor>) -> Tensor {
        let mut hidden = self.conv1.forward(&self.norm1.forward(x).silu());
        if let (Some(project), Some(embedding)) = (&self.time_emb_proj, embedding) {
            hidden += project.forward(embedding).unsqueeze(-1).unsqueeze(-1);
        }
        let hidden = self.conv2.forward(&self.norm2.forward(&hidden).silu());
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x) + hidden,
            None => x + hidden,
        }
    }
}

/// `Downsample2D`: a strided convolution that halves height and width.
#[derive(Debug)]
pub(crate) struct Downsample2D {
    conv: Conv2d,
    asymmetric: bool,
}

impl Downsample2D {
    /// `asymmetric` pads right and bottom only, as the autoencoder does; else all sides.
    pub(crate) fn new(scope: &Scope, channels: i64, asymmetric: bool) -> Self {
        let padding = i64::from(!asymmetric);
        let config = Conv2dConfig { stride: 2, padding, ..Conv2dConfig::same(3) };
        Self { conv: Conv2d::new(&scope.sub("conv"), channels, channels, config), asymmetric }
    }

    /// [N, C, H, W] to [N, C, H/2, W/2].
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match self.asymmetric {
            true => self.conv.forward(&x.constant_pad_nd([0, 1, 0, 1])),
            false => self.conv.forward(x),
        }
    }
}

/// `Upsample2D`: nearest neighbour, then a convolution.
#[derive(Debug)]
pub(crate) struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    /// Keeps the channels.
    pub(crate) fn new(scope: &Scope, channels: i64) -> Self {
        Self { conv: Conv2d::new(&scope.sub("conv"), channels, channels, Conv2dConfig::same(3)) }
    }

    /// [N, C, H, W] to [N, C, height, width].
    pub(crate) fn forward(&self, x: &Tensor, [height, width]: [i64; 2]) -> Tensor {
        self.conv.forward(&x.upsample_nearest2d([height, width], None, None))
    }
}

/// Multi-head attention by the fused kernel: `query` [N, T, C], `key` and `value` [N, S, C] to [N, T, C].
pub(crate) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64) -> Tensor {
    let (n, length, channels) = query.size3().unwrap_or_default();
    let split = |x: &Tensor| x.view([n, -1, heads, channels / heads]).transpose(1, 2);
    let (query, key, value) = (split(query), split(key), split(value));
    let out =
        Tensor::scaled_dot_product_attention::<Tensor>(&query, &key, &value, None, 0., false, None, false);
    out.transpose(1, 2).reshape([n, length, channels])
}

/// [N, C, H, W] to rows [N, H W, C]; free if the map is channels-last.
pub(crate) fn rows_of(map: &Tensor) -> Tensor {
    map.flatten(2, 3).transpose(1, 2)
}

/// Rows [N, H W, C] back to the shape of `map`, whose strides they keep if it is channels-last.
pub(crate) fn map_of(rows: &Tensor, map: &Tensor) -> Tensor {
    let (n, _, height, width) = map.size4().unwrap_or_default();
    rows.view([n, height, width, -1]).permute([0, 3, 1, 2])
}
