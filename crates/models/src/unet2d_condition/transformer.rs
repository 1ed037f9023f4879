//! Attention to the image itself and to the text.

use super::conditioning::Conditioning;
use crate::blocks2d::{Norm, attend, map_of, rows_of};
use equipoise_nn::Scope;
use equipoise_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Linear};
use equipoise_nn::precision::full;
use tch::{Kind, Tensor};

/// Width of the feed-forward layer over the width of the transformer.
const EXPANSION: i64 = 4;

/// What all attention layers of a level have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionShape {
    /// Channels of the level.
    pub(super) channels: i64,
    /// Heads.
    pub(super) heads: i64,
    /// Width of the text embeddings.
    pub(super) text: i64,
    /// Whether attention runs in float32.
    pub(super) upcast: bool,
}

/// `Attention`: queries from the image, keys and values from `context`.
#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    upcast: bool,
}

impl Attention {
    fn new(scope: &Scope, shape: AttentionShape, context: i64) -> Self {
        let AttentionShape { channels, heads, upcast, .. } = shape;
        let project = |name, from| Linear::with(&scope.sub(name), from, channels, false, None);
        Self {
            to_q: project("to_q", channels),
            to_k: project("to_k", context),
            to_v: project("to_v", context),
            to_out: Linear::new(&scope.sub("to_out").sub(0), channels, channels),
            heads,
            upcast,
        }
    }

    /// Keys and values of `context` [N, S, D], both [N, S, C].
    fn keys(&self, context: &Tensor) -> (Tensor, Tensor) {
        (self.to_k.forward(context), self.to_v.forward(context))
    }

    /// `x` [N, T, C], keys and values [N, S, C] to [N, T, C].
    fn forward(&self, x: &Tensor, (key, value): (Tensor, Tensor)) -> Tensor {
        let query = self.to_q.forward(x);
        let mixed = if self.upcast && matches!(query.kind(), Kind::Half | Kind::BFloat16) {
            let float = |x: &Tensor| x.to_kind(Kind::Float);
            full(x.device(), || attend(&float(&query), &float(&key), &float(&value), self.heads))
                .to_kind(query.kind())
        } else {
            attend(&query, &key, &value, self.heads)
        };
        self.to_out.forward(&mixed)
    }
}

/// `BasicTransformerBlock`: self-attention, attention to the text, gated feed-forward; each after a layer norm and
/// added to its input.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    gated: Linear,
    out: Linear,
}

impl TransformerBlock {
    fn new(scope: &Scope, shape: AttentionShape) -> Self {
        let channels = shape.channels;
        let norm = |name| LayerNorm::new(&scope.sub(name), channels, 1e-5);
        let (ff, hidden) = (scope.sub("ff").sub("net"), EXPANSION * channels);
        Self {
            norm1: norm("norm1"),
            attn1: Attention::new(&scope.sub("attn1"), shape, channels),
            norm2: norm("norm2"),
            attn2: Attention::new(&scope.sub("attn2"), shape, shape.text),
            norm3: norm("norm3"),
            gated: Linear::new(&ff.sub(0).sub("proj"), channels, 2 * hidden),
            out: Linear::new(&ff.sub(2), hidden, channels),
        }
    }

    fn forward(&self, x: &Tensor, condition: &Conditioning) -> Tensor {
        let normed = self.norm1.forward(x);
        let x = x + self.attn1.forward(&normed, self.attn1.keys(&normed));
        let keys = condition.next_keys(|text| self.attn2.keys(text));
        let x = &x + self.attn2.forward(&self.norm2.forward(&x), keys);
        let gated = self.gated.forward(&self.norm3.forward(&x)).chunk(2, -1);
        &x + self.out.forward(&(&gated[0] * gated[1].gelu("none")))
    }
}

/// The way from a map to rows and back.
#[derive(Debug)]
enum Projection {
    Linear(Linear, Linear),
    Conv(Conv2d, Conv2d),
}

/// `Transformer2DModel`: group norm, projection, transformer blocks over positions, projection, residual.
#[derive(Debug)]
pub(super) struct Transformer2D {
    norm: GroupNorm,
    projection: Projection,
    blocks: Vec<TransformerBlock>,
}

impl Transformer2D {
    /// `layers` blocks; `linear` chooses the projection.
    pub(super) fn new(scope: &Scope, shape: AttentionShape, groups: i64, layers: i64, linear: bool) -> Self {
        let channels = shape.channels;
        let (first, last) = (scope.sub("proj_in"), scope.sub("proj_out"));
        let conv = |scope| Conv2d::new(scope, channels, channels, Conv2dConfig::same(1));
        let dense = |scope| Linear::new(scope, channels, channels);
        let norm = Norm { groups, eps: 1e-6 }.layer(&scope.sub("norm"), channels);
        let entry = match linear {
            true => Projection::Linear(dense(&first), dense(&last)),
            false => Projection::Conv(conv(&first), conv(&last)),
        };
        let blocks = scope.sub("transformer_blocks");
        let blocks = (0..layers).map(|i| TransformerBlock::new(&blocks.sub(i), shape)).collect();
        Self { norm, projection: entry, blocks }
    }

    /// Keeps the shape [N, C, H, W].
    pub(super) fn forward(&self, x: &Tensor, condition: &Conditioning) -> Tensor {
        let normed = self.norm.forward(x);
        let rows = match &self.projection {
            Projection::Linear(proj_in, _) => proj_in.forward(&rows_of(&normed)),
            Projection::Conv(proj_in, _) => rows_of(&proj_in.forward(&normed)),
        };
        let rows = self.blocks.iter().fold(rows, |rows, block| block.forward(&rows, condition));
        x + match &self.projection {
            Projection::Linear(_, proj_out) => map_of(&proj_out.forward(&rows), x),
            Projection::Conv(_, proj_out) => proj_out.forward(&map_of(&rows, x)),
        }
    }
}
