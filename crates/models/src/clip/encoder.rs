//! The pre-norm transformer that both towers are.

use super::config::{Activation, ClipTransformer};
use equipoise_nn::Scope;
use equipoise_nn::layers::{LayerNorm, Linear};
use tch::Tensor;

/// Which positions see which.
#[derive(Debug)]
pub(super) enum Visibility {
    /// All see all.
    All,
    /// Each sees itself and what comes before.
    Causal,
    /// Added to the scores, [N, 1, L, L].
    Bias(Tensor),
}

/// `CLIPAttention`.
#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

impl Attention {
    fn new(scope: &Scope, width: i64, heads: i64) -> Self {
        let linear = |name| Linear::new(&scope.sub(name), width, width);
        Self {
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
            heads,
        }
    }

    /// Keeps the shape [N, L, width]. The fused kernel scales scores by 1/sqrt(width of a head).
    fn forward(&self, x: &Tensor, visible: &Visibility) -> Tensor {
        let split = |x: Tensor| x.unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let [query, key, value] =
            [&self.q_proj, &self.k_proj, &self.v_proj].map(|proj| split(proj.forward(x)));
        let (bias, causal) = match visible {
            Visibility::All => (None, false),
            Visibility::Causal => (None, true),
            Visibility::Bias(bias) => (Some(bias), false),
        };
        let mixed = Tensor::scaled_dot_product_attention(&query, &key, &value, bias, 0., causal, None, false);
        self.out_proj.forward(&mixed.transpose(1, 2).flatten(2, 3))
    }
}

/// `CLIPEncoderLayer`: attention and a feed-forward layer, each after a norm and around a residual.
#[derive(Debug)]
struct Layer {
    self_attn: Attention,
    layer_norm1: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    layer_norm2: LayerNorm,
    activation: Activation,
}

impl Layer {
    fn new(scope: &Scope, config: &ClipTransformer) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| LayerNorm::new(&scope.sub(name), width, config.layer_norm_eps);
        let mlp = scope.sub("mlp");
        Self {
            self_attn: Attention::new(&scope.sub("self_attn"), width, config.num_attention_heads),
            layer_norm1: norm("layer_norm1"),
            fc1: Linear::new(&mlp.sub("fc1"), width, inner),
            fc2: Linear::new(&mlp.sub("fc2"), inner, width),
            layer_norm2: norm("layer_norm2"),
            activation: config.hidden_act,
        }
    }

    fn forward(&self, x: &Tensor, visible: &Visibility) -> Tensor {
        let x = x + self.self_attn.forward(&self.layer_norm1.forward(x), visible);
        let inner = self.activation.apply(&self.fc1.forward(&self.layer_norm2.forward(&x)));
        x + self.fc2.forward(&inner)
    }
}

/// `CLIPEncoder`.
#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
}

impl Encoder {
    /// Names `layers.<i>`.
    pub(super) fn new(scope: &Scope, config: &ClipTransformer) -> Self {
        let layers = scope.sub("layers");
        Self { layers: (0..config.num_hidden_layers).map(|i| Layer::new(&layers.sub(i), config)).collect() }
    }

    /// [N, L, width] to the states before the first layer, after it, ..., after the last.
    pub(super) fn states(&self, x: Tensor, visible: &Visibility) -> Vec<Tensor> {
        let mut states = vec![x];
        for layer in &self.layers {
            let next = layer.forward(&states[states.len() - 1], visible);
            states.push(next);
        }
        states
    }

    /// [N, L, width] to the state after the last layer.
    pub(super) fn forward(&self, x: Tensor, visible: &Visibility) -> Tensor {
        self.layers.iter().fold(x, |x, layer| layer.forward(&x, visible))
    }
}
