//! `config.json` of the towers.

use crate::hf_config::Keys;
use equipoise_base::{Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tch::Tensor;

/// Non-linearity of the feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x Phi(x), by the error function.
    Gelu,
    /// x sigmoid(1.702 x): OpenAI's.
    QuickGelu,
    /// GELU by its tanh approximation.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
}

impl Activation {
    pub(super) fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Gelu => x.gelu("none"),
            Activation::QuickGelu => x * (x * 1.702).sigmoid(),
            Activation::GeluNew => x.gelu("tanh"),
        }
    }
}

/// What both towers are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipTransformer {
    /// Width.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads; must divide the width.
    pub num_attention_heads: i64,
    /// Non-linearity.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// Length of the embedding that text and images share.
    pub projection_dim: i64,
}

impl ClipTransformer {
    /// Reads the keys with transformers' defaults, which differ in (width, feed-forward width, heads).
    fn take(keys: &mut Keys, (width, intermediate, heads): (i64, i64, i64)) -> Result<Self> {
        let this = Self {
            hidden_size: keys.take("hidden_size", width)?,
            intermediate_size: keys.take("intermediate_size", intermediate)?,
            num_hidden_layers: keys.take("num_hidden_layers", 12)?,
            num_attention_heads: keys.take("num_attention_heads", heads)?,
            hidden_act: keys.take("hidden_act", Activation::QuickGelu)?,
            layer_norm_eps: keys.take("layer_norm_eps", 1e-5)?,
            projection_dim: keys.take("projection_dim", 512)?,
        };
        let sizes = [
            ("hidden_size", this.hidden_size),
            ("intermediate_size", this.intermediate_size),
            ("num_hidden_layers", this.num_hidden_layers),
            ("num_attention_heads", this.num_attention_heads),
            ("projection_dim", this.projection_dim),
        ];
        positive(keys, &sizes)?;
        ensure!(
            this.hidden_size % this.num_attention_heads == 0,
            BadData,
            "{}: num_attention_heads {} does not divide hidden_size {}",
            keys.source(),
            this.num_attention_heads,
            this.hidden_size
        );
        Ok(this)
    }
}

/// The text tower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipTextConfig {
    /// The layers.
    pub transformer: ClipTransformer,
    /// Number of tokens.
    pub vocab_size: i64,
    /// Longest text in tokens.
    pub max_position_embeddings: i64,
    /// Token that ends a text; 2 is what old files say whatever their vocabulary.
    pub eos_token_id: i64,
}

impl ClipTextConfig {
    /// Reads the `config.json` of a text tower or of a whole CLIP; `source` names it in errors.
    ///
    /// # Errors
    /// 65 naming the key that makes no tower.
    pub fn from_json(source: &str, json: Value) -> Result<Self> {
        let mut keys = tower(source, json, "text_config")?;
        let this = Self {
            transformer: ClipTransformer::take(&mut keys, (512, 2048, 8))?,
            vocab_size: keys.take("vocab_size", 49_408)?,
            max_position_embeddings: keys.take("max_position_embeddings", 77)?,
            eos_token_id: keys.take("eos_token_id", 49_407)?,
        };
        let sizes =
            [("vocab_size", this.vocab_size), ("max_position_embeddings", this.max_position_embeddings)];
        positive(&keys, &sizes)?;
        Ok(this)
    }
}

/// The vision tower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipVisionConfig {
    /// The layers.
    pub transformer: ClipTransformer,
    /// Channels of an image.
    pub num_channels: i64,
    /// Height and width of an image.
    pub image_size: i64,
    /// Height and width of a patch.
    pub patch_size: i64,
}

impl ClipVisionConfig {
    /// Reads the `config.json` of a vision tower or of a whole CLIP; `source` names it in errors.
    ///
    /// # Errors
    /// 65 naming the key that makes no tower.
    pub fn from_json(source: &str, json: Value) -> Result<Self> {
        let mut keys = tower(source, json, "vision_config")?;
        let this = Self {
            transformer: ClipTransformer::take(&mut keys, (768, 3072, 12))?,
            num_channels: keys.take("num_channels", 3)?,
            image_size: keys.take("image_size", 224)?,
            patch_size: keys.take("patch_size", 32)?,
        };
        let sizes = [
            ("num_channels", this.num_channels),
            ("image_size", this.image_size),
            ("patch_size", this.patch_size),
        ];
        positive(&keys, &sizes)?;
        ensure!(
            this.patch_size <= this.image_size,
            BadData,
            "{source}: patch_size {} is larger than image_size {}",
            this.patch_size,
            this.image_size
        );
        Ok(this)
    }

    /// Patches of an image.
    pub fn patches(&self) -> i64 {
        let side = self.image_size / self.patch_size;
        side * side
    }
}

/// The keys of one tower: those of the file, or of its part if the file describes a whole CLIP.
fn tower(source: &str, mut json: Value, part: &str) -> Result<Keys> {
    let Some(mut inner) = json.get_mut(part).map(Value::take).filter(Value::is_object) else {
        return Keys::new(source, json);
    };
    // The towers of a whole CLIP meet in one space; old files say its size outside only.
    if let (Some(inner), Some(size)) = (inner.as_object_mut(), json.get("projection_dim")) {
        inner.insert("projection_dim".into(), size.clone());
    }
    Keys::new(source, inner)
}

fn positive(keys: &Keys, sizes: &[(&str, i64)]) -> Result<()> {
    for (key, size) in sizes {
        ensure!((1..=1 << 24).contains(size), BadData, "{}: {key} = {size} makes no tower", keys.source());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_whole_clip_describes_both_towers() {
        let json = json!({
            "projection_dim": 768,
            "text_config": { "hidden_size": 768, "num_attention_heads": 12, "eos_token_id": 2 },
            "vision_config": { "patch_size": 14, "hidden_act": "gelu" },
        });
        let text = ClipTextConfig::from_json("f", json.clone()).unwrap();
        assert_eq!((text.transformer.hidden_size, text.transformer.projection_dim), (768, 768));
        assert_eq!((text.eos_token_id, text.vocab_size), (2, 49_408));
        let vision = ClipVisionConfig::from_json("f", json).unwrap();
        assert_eq!((vision.patches(), vision.transformer.hidden_act), (256, Activation::Gelu));
    }

    #[test]
    fn what_makes_no_tower_is_named() {
        let text = |json| ClipTextConfig::from_json("f", json).unwrap_err().message().to_string();
        assert!(text(json!({ "num_attention_heads": 7 })).contains("f: num_attention_heads 7"));
        assert!(text(json!({ "vocab_size": 0 })).contains("vocab_size = 0"));
        assert!(text(json!({ "hidden_act": "mish" })).contains("'hidden_act'"));
        assert!(text(json!([])).contains("JSON object"));
        let vision = ClipVisionConfig::from_json("f", json!({ "image_size": 8 })).unwrap_err();
        assert!(vision.message().contains("patch_size 32"), "{vision}");
    }
}
