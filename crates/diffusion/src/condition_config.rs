//! What a latent diffusion is told about each image: text of the class and, for unCLIP, a real image of it.

use crate::image_embedding::EmbeddingDropout;
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stands for the name of the class in a prompt.
const CLASS: &str = "{class}";

/// Stands for the name of the context in a prompt.
const CONTEXT: &str = "{context}";

/// Which image unCLIP is told, beside the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageCondition {
    /// A random real image of the class, in whatever context.
    #[default]
    Random,
    /// None: the class label is zero, as in the unconditional half of classifier-free guidance.
    None,
}

/// Knobs of dual conditioning (seed 002, Section 2.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConditionConfig {
    /// Text of an image; `{class}` stands for the name of its class, `{context}` for that of its context.
    pub prompt: String,
    /// Text of the unconditional half of classifier-free guidance; seldom anything but empty.
    pub negative_prompt: String,
    /// Image that unCLIP is told; other networks are told none.
    #[serde(default)]
    pub image: ImageCondition,
    /// Noise added to the embedding of the real image: 0 is least.
    pub noise_level: i64,
    /// Which real image of its class every image is conditioned on, by its position among them, beginning again after
    /// the last; a random one for each image if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<u64>,
    /// Elements of the condition that are dropped, against copies of the real image.
    pub dropout: EmbeddingDropout,
    /// Height and width in pixels at which images are sampled, before they are resized to data.size; the size that the
    /// network was trained at if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[i64; 2]>,
    /// Whether images are decoded one at a time, which needs less memory.
    pub sliced_decode: bool,
}

impl ConditionConfig {
    /// # Errors
    /// 78 naming the key.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.prompt.trim().is_empty(),
            Config,
            "condition.prompt is empty: say what is in an image, such as \"a photo of a {CLASS}\""
        );
        self.dropout.check()
    }

    /// The prompt of a class in a context; `context` is empty where images have none.
    pub fn prompt_of(&self, class: &str, context: &str) -> String {
        prompt_of(&self.prompt, class, context)
    }
}

/// The text that a prompt makes of the names of a class and its context; `context` is empty where images have none.
pub fn prompt_of(prompt: &str, class: &str, context: &str) -> String {
    prompt.replace(CONTEXT, context).replace(CLASS, class)
}

/// Whether a prompt says in which context an image is.
pub fn names_context(prompt: &str) -> bool {
    prompt.contains(CONTEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prompts_name_the_class() {
        let read = |prompt: &str| {
            let dropout = json!({ "p": 0.4, "target": "class_label", "rescale": "none" });
            let json = json!({
                "prompt": prompt, "negative_prompt": "", "noise_level": 0, "dropout": dropout, "sliced_decode": false,
            });
            serde_json::from_value::<ConditionConfig>(json).unwrap()
        };
        assert_eq!(
            read("a photo of a {class}, one {class}").prompt_of("toad", ""),
            "a photo of a toad, one toad"
        );
        assert_eq!(read("{class} in {context}").prompt_of("toad", "autumn"), "toad in autumn");
        assert!(read("{class}").check().is_ok() && read(" ").check().is_err());
    }
}
