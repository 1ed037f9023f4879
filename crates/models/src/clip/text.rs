//! The text tower: `CLIPTextModel`, with a projection `CLIPTextModelWithProjection`.

use super::config::ClipTextConfig;
use super::encoder::{Encoder, Visibility};
use equipoise_base::Result;
use equipoise_nn::layers::{Embedding, LayerNorm, Linear};
use equipoise_nn::{Init, Params, Scope, mapped};
use equipoise_pretrained::Component;
use tch::{Device, Kind, Tensor};

/// The `eos_token_id` of files from before transformers 4.31, which are pooled at the largest id instead.
const LEGACY_EOS: i64 = 2;

/// Texts to embeddings.
#[derive(Debug)]
pub struct ClipTextModel {
    config: ClipTextConfig,
    token_embedding: Embedding,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

/// What the text tower says about N texts of L tokens.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// States before the first layer, after it, ..., after the last: [N, L, width] each, not normalised. The last but
    /// one is what `clip_skip` 1 conditions on.
    pub hidden_states: Vec<Tensor>,
    /// The last of them after the final norm, [N, L, width]: what Stable Diffusion conditions on.
    pub last_hidden_state: Tensor,
    /// The same at the end of each text, [N, width].
    pub pooler_output: Tensor,
    /// Its projection to the space shared with images, [N, projection_dim], not normalised; if there is a projection.
    pub text_embeds: Option<Tensor>,
}

impl ClipTextModel {
    /// Creates the tower under `scope`.
    pub fn new(scope: &Scope, config: &ClipTextConfig, projection: bool) -> Self {
        let layers = &config.transformer;
        let model = scope.sub("text_model");
        let embeddings = model.sub("embeddings");
        let shape = [config.max_position_embeddings, layers.hidden_size];
        Self {
            config: *config,
            token_embedding: Embedding::new(
                &embeddings.sub("token_embedding"),
                config.vocab_size,
                layers.hidden_size,
            ),
            position_embedding: embeddings.sub("position_embedding").param(
                "weight",
                &shape,
                Init::Normal(0.02),
            ),
            encoder: Encoder::new(&model.sub("encoder"), layers),
            final_layer_norm: LayerNorm::new(
                &model.sub("final_layer_norm"),
                layers.hidden_size,
                layers.layer_norm_eps,
            ),
            text_projection: projection.then(|| {
                let scope = scope.sub("text_projection");
                Linear::with(&scope, layers.hidden_size, layers.projection_dim, false, None)
            }),
        }
    }

    /// Loads a component as it is, frozen.
    ///
    /// # Errors
    /// 65 naming the file, and the key or tensor in it, that makes no text tower; 74 if one cannot be read.
    pub fn open(component: &Component, kind: Kind, device: Device) -> Result<Self> {
        let source = component.config_path()?.display().to_string();
        let config = ClipTextConfig::from_json(&source, component.config()?)?;
        let files = component.weights()?;
        let named = component.class().is_some_and(|class| class.ends_with("WithProjection"));
        let projection = named || files.tensors().contains_key("text_projection.weight");
        let params = Params::for_loading(kind, device);
        let model = Self::new(&params.root(), &config, projection);
        mapped::load(&params, &files, state_name)?;
        params.freeze();
        Ok(model)
    }

    /// The configuration.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Token ids [N, L] int64, L up to `max_position_embeddings`; `attention_mask` [N, L] int64 has 0 where a position
    /// is not to be seen, on top of each position seeing only what comes before.
    ///
    /// # Panics
    /// If an id is not in the vocabulary or a text is too long.
    pub fn forward(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> ClipTextOutput {
        let (_, length) = input_ids.size2().unwrap_or_default();
        let positions = self.position_embedding.narrow(0, 0, length);
        let embedded = self.token_embedding.forward(input_ids) + positions;
        let visible = match attention_mask {
            None => Visibility::Causal,
            Some(mask) => Visibility::Bias(bias(mask, embedded.kind())),
        };
        let hidden_states = self.encoder.states(embedded, &visible);
        let last_hidden_state = self.final_layer_norm.forward(&hidden_states[hidden_states.len() - 1]);
        let width = last_hidden_state.size()[2];
        let ends = self.ends(input_ids).view([-1, 1, 1]).expand([-1, 1, width], false);
        let pooler_output = last_hidden_state.gather(1, &ends, false).squeeze_dim(1);
        let text_embeds = self.text_projection.as_ref().map(|proj| proj.forward(&pooler_output));
        ClipTextOutput { hidden_states, last_hidden_state, pooler_output, text_embeds }
    }

    /// Position at which each text ends, [N] int64: that of the first end token.
    fn ends(&self, input_ids: &Tensor) -> Tensor {
        if self.config.eos_token_id == LEGACY_EOS {
            return input_ids.argmax(-1, false);
        }
        // The smallest position that holds the token; 0 where none does, as the reference's argmax of nothing.
        let position = Tensor::arange(input_ids.size()[1], (Kind::Int64, input_ids.device()));
        let missing = input_ids.ne(self.config.eos_token_id);
        let first = (position + missing.to_kind(Kind::Int64) * i64::from(i32::MAX)).amin([-1i64], false);
        first.remainder(i64::from(i32::MAX))
    }
}

/// A mask of what may be seen to what is added to the scores: the lowest finite number of the kind hides.
///
/// Hiding twice adds two of them, to minus infinity; so a position that sees nothing looks evenly at what only one of
/// the two masks hides, as in transformers.
fn bias(mask: &Tensor, kind: Kind) -> Tensor {
    let lowest = match kind {
        Kind::Double => f64::MIN,
        Kind::Half => -65_504.,
        Kind::BFloat16 => -3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MIN),
    };
    let length = mask.size()[1];
    let causal = Tensor::full([length, length], lowest, (kind, mask.device())).triu(1);
    let hidden = mask.zeros_like().to_kind(kind).masked_fill(&mask.eq(0), lowest);
    causal + hidden.unsqueeze(1).unsqueeze(1)
}

/// Our name of a tensor of a file: transformers 5.x drops the prefix, and a whole CLIP holds the other tower too.
fn state_name(name: &str) -> Option<String> {
    let other = ["vision_model.", "visual_projection.", "logit_scale"];
    if other.iter().any(|start| name.starts_with(start)) || name.ends_with("embeddings.position_ids") {
        return None;
    }
    let bare = ["embeddings.", "encoder.", "final_layer_norm."];
    let prefix = if bare.iter().any(|start| name.starts_with(start)) { "text_model." } else { "" };
    Some(format!("{prefix}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(eos: i64) -> ClipTextConfig {
        let json = json!({
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 10, "max_position_embeddings": 6, "eos_token_id": eos, "projection_dim": 3,
        });
        ClipTextConfig::from_json("f", json).unwrap()
    }

    /// OpenCLIP ViT-H/14 as Stable Diffusion 2.1 has it.
    #[test]
    fn size_of_stable_diffusion_2() {
        let json = json!({
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "hidden_act": "gelu", "projection_dim": 512,
        });
        let params = Params::for_shapes();
        let _ = ClipTextModel::new(&params.root(), &ClipTextConfig::from_json("f", json).unwrap(), false);
        assert_eq!(params.count(), 340_387_840);
    }

    #[test]
    fn texts_are_pooled_at_their_first_end() {
        let params = Params::new(1, Kind::Float, Device::Cpu);
        let ids = Tensor::from_slice2(&[[1i64, 9, 3, 9, 9, 9], [4, 1, 1, 1, 5, 9], [8, 1, 1, 1, 1, 1]]);
        let model = ClipTextModel::new(&params.root(), &config(9), true);
        assert_eq!(Vec::<i64>::try_from(model.ends(&ids)).unwrap(), [1, 5, 0]);
        let params = Params::new(1, Kind::Float, Device::Cpu);
        let legacy = ClipTextModel::new(&params.root(), &config(2), true);
        assert_eq!(Vec::<i64>::try_from(legacy.ends(&ids)).unwrap(), [1, 5, 0]);
        let out = legacy.forward(&ids, None);
        assert!(out.pooler_output.get(1).equal(&out.last_hidden_state.get(1).get(5)));
        assert_eq!((out.hidden_states.len(), out.text_embeds.unwrap().size()), (3, vec![3, 3]));
    }

    #[test]
    fn no_position_sees_what_follows_or_is_masked() {
        let params = Params::new(1, Kind::Double, Device::Cpu);
        let model = ClipTextModel::new(&params.root(), &config(9), false);
        let states = |ids: [i64; 4], mask: Option<[i64; 4]>| {
            let mask = mask.map(|mask| Tensor::from_slice(&mask).unsqueeze(0));
            let ids = Tensor::from_slice(&ids).unsqueeze(0);
            tch::no_grad(|| model.forward(&ids, mask.as_ref()).last_hidden_state.squeeze_dim(0))
        };
        let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-12;
        let (a, b) = (states([1, 2, 3, 4], None), states([1, 2, 3, 5], None));
        assert!(near(&a.narrow(0, 0, 3), &b.narrow(0, 0, 3)) && !near(&a.get(3), &b.get(3)));
        assert!(near(&a, &states([1, 2, 3, 4], Some([1; 4]))));
        let (a, b) = (states([1, 2, 3, 4], Some([1, 0, 1, 1])), states([1, 7, 3, 4], Some([1, 0, 1, 1])));
        assert!(near(&a.get(3), &b.get(3)) && !near(&a.get(1), &b.get(1)));
    }

    #[test]
    fn names_of_all_ages() {
        let ours = |name: &str| state_name(name);
        let full = Some("text_model.encoder.layers.0.mlp.fc1.bias".to_string());
        assert_eq!(ours("text_model.encoder.layers.0.mlp.fc1.bias"), full);
        assert_eq!(ours("encoder.layers.0.mlp.fc1.bias"), full);
        assert_eq!(ours("text_projection.weight").as_deref(), Some("text_projection.weight"));
        for unused in ["logit_scale", "vision_model.x", "text_model.embeddings.position_ids"] {
            assert_eq!(ours(unused), None);
        }
    }
}
