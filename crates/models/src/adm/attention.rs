//! Self-attention over positions, and the attention pooling head.

use super::config::GROUPS;
use equipoise_nn::layers::GroupNorm;
use equipoise_nn::{Init, Scope};
use tch::Tensor;

/// A `Conv1d` of kernel 1, applied to positions in rows.
#[derive(Debug)]
struct Pointwise {
    weight: Tensor,
    bias: Tensor,
}

impl Pointwise {
    /// Creates `weight` [out, in, 1] and `bias` [out]; `zero` starts both at 0.
    fn new(scope: &Scope, input: i64, output: i64, zero: bool) -> Self {
        let init = if zero { Init::Constant(0.) } else { Init::default_for(input) };
        Self {
            weight: scope.param("weight", &[output, input, 1], init),
            bias: scope.param("bias", &[output], init),
        }
    }

    /// [N, T, in] to [N, T, out].
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight.squeeze_dim(-1), Some(&self.bias))
    }
}

/// Order of the channels that hold queries, keys and values of all heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// (head, q k v, channel): `QKVAttentionLegacy`.
    HeadFirst,
    /// (q k v, head, channel): `QKVAttention`.
    KindFirst,
}

/// [N, T, 3C] to [N, T, C].
fn attend(qkv: &Tensor, heads: i64, order: Order) -> Tensor {
    let (n, length, width) = qkv.size3().unwrap_or_default();
    let channels = width / (3 * heads);
    let (split, kind_dim) = match order {
        Order::HeadFirst => ([n, length, heads, 3, channels], 3),
        Order::KindFirst => ([n, length, 3, heads, channels], 2),
    };
    let parts = qkv.view(split).unbind(kind_dim);
    let [query, key, value] = [0, 1, 2].map(|part| parts[part].transpose(1, 2));
    // Gradients of CUDA's fused kernels are not deterministic while others are only warned of; those of the plain
    // products are.
    let out = if query.requires_grad() && query.device().is_cuda() {
        Tensor::internal_scaled_dot_product_attention_math::<Tensor>(
            &query, &key, &value, None, 0., false, None, None, false,
        )
        .0
    } else {
        Tensor::scaled_dot_product_attention::<Tensor>(&query, &key, &value, None, 0., false, None, false)
    };
    out.transpose(1, 2).reshape([n, length, heads * channels])
}

/// `AttentionBlock`: group norm, attention over all positions, residual.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Pointwise,
    proj_out: Pointwise,
    heads: i64,
    order: Order,
}

impl AttentionBlock {
    /// Names `norm`, `qkv`, `proj_out`; the last starts at 0.
    pub(super) fn new(scope: &Scope, channels: i64, heads: i64, order: Order) -> Self {
        Self {
            norm: GroupNorm::new(&scope.sub("norm"), GROUPS, channels, 1e-5),
            qkv: Pointwise::new(&scope.sub("qkv"), channels, 3 * channels, false),
            proj_out: Pointwise::new(&scope.sub("proj_out"), channels, channels, true),
            heads,
            order,
        }
    }

    /// Keeps the shape [N, C, H, W].
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let rows = self.norm.forward(x).flatten(2, 3).transpose(1, 2);
        let out = self.proj_out.forward(&attend(&self.qkv.forward(&rows), self.heads, self.order));
        x + out.transpose(1, 2).reshape(x.size())
    }
}

/// `AttentionPool2d`: the mean position attends to all positions (after CLIP).
#[derive(Debug)]
pub(super) struct AttentionPool {
    positional_embedding: Tensor,
    qkv_proj: Pointwise,
    c_proj: Pointwise,
    heads: i64,
}

impl AttentionPool {
    /// For maps of `side` x `side` positions.
    pub(super) fn new(scope: &Scope, side: i64, channels: i64, heads: i64, outputs: i64) -> Self {
        let init = Init::Normal(1. / (channels as f64).sqrt());
        Self {
            positional_embedding: scope.param("positional_embedding", &[channels, side * side + 1], init),
            qkv_proj: Pointwise::new(&scope.sub("qkv_proj"), channels, 3 * channels, false),
            c_proj: Pointwise::new(&scope.sub("c_proj"), channels, outputs, false),
            heads,
        }
    }

    /// [N, C, side, side] to [N, outputs].
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let positions = x.flatten(2, 3);
        let mean = positions.mean_dim(-1, true, None);
        let rows = (Tensor::cat(&[mean, positions], 2) + &self.positional_embedding).transpose(1, 2);
        let mixed = attend(&self.qkv_proj.forward(&rows), self.heads, Order::KindFirst);
        self.c_proj.forward(&mixed.select(1, 0))
    }
}
