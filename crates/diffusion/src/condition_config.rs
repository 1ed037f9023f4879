//! What a latent diffusion is told about each image: text of the class and, for unCLIP, a real image of it.

use crate::image_embedding::EmbeddingDropout;
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stands for the name of the class in a prompt.
const CLASS: &str = "{class}";

/// Knobs of dual conditioning (seed 002, Section 2.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConditionConfig {
    /// Text of an image; `{class}` stands for the name of its class.
    pub prompt: String,
    /// Text of the unconditional half of classifier-free guidance; seldom anything but empty.
    pub negative_prompt: String,
    /// Noise added to the embedding of the real image: 0 is least.
    pub noise_level: i64,
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

    /// The prompt of a class.
    pub fn prompt_of(&self, class: &str) -> String {
        prompt_of(&self.prompt, class)
    }
}

/// The text that a prompt makes of the name of a class.
pub fn prompt_of(prompt: &str, class: &str) -> String {
    prompt.replace(CLASS, class)
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
            read("a photo of a {class}, one {class}").prompt_of("toad"),
            "a photo of a toad, one toad"
        );
        assert!(read("{class}").check().is_ok() && read(" ").check().is_err());
    }
}
