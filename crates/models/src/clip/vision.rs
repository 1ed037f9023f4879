//! The vision tower: `CLIPVisionModelWithProjection`.

use super::config::ClipVisionConfig;
use super::encoder::{Encoder, Visibility};
use equipoise_base::Result;
use equipoise_nn::layers::{Conv2d, Conv2dConfig, LayerNorm, Linear};
use equipoise_nn::{Init, Params, Scope, mapped};
use equipoise_pretrained::Component;
use tch::{Device, Kind, Tensor};

/// Images to embeddings.
#[derive(Debug)]
pub struct ClipVisionModel {
    config: ClipVisionConfig,
    class_embedding: Tensor,
    patch_embedding: Conv2d,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
}

/// What the vision tower says about N images of P patches.
#[derive(Debug)]
pub struct ClipVisionOutput {
    /// States of the class token and the patches after the last layer, [N, 1 + P, width], not normalised.
    pub last_hidden_state: Tensor,
    /// The class token's after the final norm, [N, width].
    pub pooled: Tensor,
    /// Its projection to the space shared with text, [N, projection_dim], not normalised.
    pub image_embeds: Tensor,
}

impl ClipVisionModel {
    /// Creates the tower under `scope`.
    pub fn new(scope: &Scope, config: &ClipVisionConfig) -> Self {
        let layers = &config.transformer;
        let width = layers.hidden_size;
        let model = scope.sub("vision_model");
        let embeddings = model.sub("embeddings");
        let init = Init::Normal(0.02);
        // transformers' own spelling: pre_layrnorm.
        let norm = |name| LayerNorm::new(&model.sub(name), width, layers.layer_norm_eps);
        let patch = Conv2dConfig {
            stride: config.patch_size,
            padding: 0,
            bias: false,
            ..Conv2dConfig::same(config.patch_size)
        };
        let positions = [config.patches() + 1, width];
        Self {
            config: *config,
            class_embedding: embeddings.param("class_embedding", &[width], init),
            patch_embedding: Conv2d::new(
                &embeddings.sub("patch_embedding"),
                config.num_channels,
                width,
                patch,
            ),
            position_embedding: embeddings.sub("position_embedding").param("weight", &positions, init),
            pre_layrnorm: norm("pre_layrnorm"),
            encoder: Encoder::new(&model.sub("encoder"), layers),
            post_layernorm: norm("post_layernorm"),
            visual_projection: Linear::with(
                &scope.sub("visual_projection"),
                width,
                layers.projection_dim,
                false,
                None,
            ),
        }
    }

    /// Loads a component as it is, frozen.
    ///
    /// # Errors
    /// 65 naming the file, and the key or tensor in it, that makes no vision tower; 74 if one cannot be read.
    pub fn open(component: &Component, kind: Kind, device: Device) -> Result<Self> {
        let source = component.config_path()?.display().to_string();
        let config = ClipVisionConfig::from_json(&source, component.config()?)?;
        let params = Params::for_loading(kind, device);
        let model = Self::new(&params.root(), &config);
        mapped::load(&params, &component.weights()?, state_name)?;
        params.freeze();
        Ok(model)
    }

    /// The configuration.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Normalised images [N, channels, image_size, image_size].
    ///
    /// # Panics
    /// If they are of another size.
    pub fn forward(&self, pixel_values: &Tensor) -> ClipVisionOutput {
        let patches = self.patch_embedding.forward(pixel_values).flatten(2, 3).transpose(1, 2);
        let class = self.class_embedding.expand([patches.size()[0], 1, -1], false);
        let embedded = Tensor::cat(&[class, patches], 1) + &self.position_embedding;
        let last_hidden_state = self.encoder.forward(self.pre_layrnorm.forward(&embedded), &Visibility::All);
        let pooled = self.post_layernorm.forward(&last_hidden_state.select(1, 0));
        let image_embeds = self.visual_projection.forward(&pooled);
        ClipVisionOutput { last_hidden_state, pooled, image_embeds }
    }
}

/// Our name of a tensor of a file: transformers 5.x drops the prefix, and a whole CLIP holds the other tower too.
fn state_name(name: &str) -> Option<String> {
    let other = ["text_model.", "text_projection.", "logit_scale"];
    if other.iter().any(|start| name.starts_with(start)) || name.ends_with("embeddings.position_ids") {
        return None;
    }
    let bare = ["embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm."];
    let prefix = if bare.iter().any(|start| name.starts_with(start)) { "vision_model." } else { "" };
    Some(format!("{prefix}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// OpenCLIP ViT-H/14 as Stable Diffusion 2.1 unCLIP has it.
    #[test]
    fn size_of_vit_h() {
        let json = json!({
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "hidden_act": "gelu", "projection_dim": 1024, "patch_size": 14,
        });
        let params = Params::for_shapes();
        let _ = ClipVisionModel::new(&params.root(), &ClipVisionConfig::from_json("f", json).unwrap());
        assert_eq!(params.count(), 632_076_800);
    }

    #[test]
    fn sizes_that_leave_a_rest_cut_it_off() {
        let json = json!({
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "projection_dim": 3, "patch_size": 3, "image_size": 8,
        });
        let params = Params::new(1, Kind::Float, Device::Cpu);
        let model = ClipVisionModel::new(&params.root(), &ClipVisionConfig::from_json("f", json).unwrap());
        let out = model.forward(&Tensor::ones([2, 3, 8, 8], (Kind::Float, Device::Cpu)));
        assert_eq!((out.last_hidden_state.size(), out.image_embeds.size()), (vec![2, 5, 8], vec![2, 3]));
    }
}
