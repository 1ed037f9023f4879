//! `config.json` of a `UNet2DConditionModel`.

use crate::hf_config::Keys;
use equipoise_base::{Result, bail, ensure};
use serde_json::{Value, json};

/// Size of a conditional U-Net; names and defaults as in diffusers. What is per level starts at the finest.
#[derive(Clone, Debug, PartialEq)]
pub struct UNet2DConditionConfig {
    /// Channels of the latent image.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Height and width of the latent image that the network was trained on.
    pub sample_size: i64,
    /// Channels of each level; each halves height and width.
    pub block_out_channels: Vec<i64>,
    /// Whether each level attends to the text, on the way down.
    pub attention: Vec<bool>,
    /// Residual blocks of each level on the way down; one more on the way up.
    pub layers_per_block: Vec<i64>,
    /// Transformer blocks after each residual block of a level that attends.
    pub transformer_layers_per_block: Vec<i64>,
    /// Attention heads of each level (`attention_head_dim`, which diffusers reads as a number of heads).
    pub attention_heads: Vec<i64>,
    /// Width of the text embeddings.
    pub cross_attention_dim: i64,
    /// Length of the vector that is embedded and added to the time embedding (`class_embed_type` "projection"); a
    /// text-to-image network has none.
    pub projection_class_embeddings_input_dim: Option<i64>,
    /// Whether maps enter and leave a transformer through linear layers instead of 1 x 1 convolutions.
    pub use_linear_projection: bool,
    /// Whether attention runs in float32 whatever the number format (Stable Diffusion 2.1 overflows float16).
    pub upcast_attention: bool,
    /// Groups of group norm.
    pub norm_num_groups: i64,
    /// Epsilon of the residual blocks' group norms.
    pub norm_eps: f64,
}

impl UNet2DConditionConfig {
    /// Reads a `config.json`; `source` names the file in errors.
    ///
    /// # Errors
    /// 65 naming the key whose value is no such network, or one that this build has not.
    pub fn from_json(source: &str, json: Value) -> Result<Self> {
        let mut keys = Keys::new(source, json)?;
        let block_out_channels = keys.take("block_out_channels", vec![320, 640, 1280, 1280])?;
        let levels = block_out_channels.len();
        let heads = keys.take_per_level("attention_head_dim", levels)?.unwrap_or(vec![8; levels]);
        let config = Self {
            in_channels: keys.take("in_channels", 4)?,
            out_channels: keys.take("out_channels", 4)?,
            sample_size: keys.take("sample_size", 64)?,
            attention: attention(&mut keys, levels)?,
            layers_per_block: keys.take_per_level("layers_per_block", levels)?.unwrap_or(vec![2; levels]),
            transformer_layers_per_block: keys
                .take_per_level("transformer_layers_per_block", levels)?
                .unwrap_or(vec![1; levels]),
            attention_heads: keys.take_per_level("num_attention_heads", levels)?.unwrap_or(heads),
            cross_attention_dim: keys.take("cross_attention_dim", 1280)?,
            projection_class_embeddings_input_dim: class_embedding(&mut keys)?,
            use_linear_projection: keys.take("use_linear_projection", false)?,
            upcast_attention: keys.take("upcast_attention", false)?,
            norm_num_groups: keys.take("norm_num_groups", 32)?,
            norm_eps: keys.take("norm_eps", 1e-5)?,
            block_out_channels,
        };
        keys.only(&[
            ("act_fn", json!("silu")),
            ("addition_embed_type_num_heads", json!(64)),
            ("attention_type", json!("default")),
            ("conv_in_kernel", json!(3)),
            ("conv_out_kernel", json!(3)),
            ("downsample_padding", json!(1)),
            ("dropout", json!(0)),
            ("flip_sin_to_cos", json!(true)),
            ("freq_shift", json!(0)),
            ("mid_block_scale_factor", json!(1)),
            ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
            ("resnet_out_scale_factor", json!(1)),
            ("resnet_time_scale_shift", json!("default")),
            ("time_embedding_type", json!("positional")),
        ])?;
        config.check(source)?;
        keys.finish()?;
        Ok(config)
    }

    fn check(&self, source: &str) -> Result<()> {
        let groups = self.norm_num_groups;
        ensure!(!self.block_out_channels.is_empty(), BadData, "{source}: 'block_out_channels' is empty");
        ensure!(
            self.in_channels > 0 && self.out_channels > 0 && self.cross_attention_dim > 0 && groups > 0,
            BadData,
            "{source}: 'in_channels', 'out_channels', 'cross_attention_dim' and 'norm_num_groups' must be positive"
        );
        let fits = |channels: i64, parts: i64| parts > 0 && channels > 0 && channels % parts == 0;
        for (&channels, &heads) in self.block_out_channels.iter().zip(&self.attention_heads) {
            ensure!(
                fits(channels, groups) && fits(channels, heads) && channels % 2 == 0,
                BadData,
                "{source}: {channels} channels do not divide into {groups} groups and {heads} heads"
            );
        }
        let counts = self.layers_per_block.iter().chain(&self.transformer_layers_per_block);
        ensure!(counts.clone().all(|&count| count > 0), BadData, "{source}: a level without layers");
        Ok(())
    }

    /// Length of the time embedding.
    pub(super) fn embedding(&self) -> i64 {
        4 * self.block_out_channels[0]
    }
}

/// Which levels attend; the way up must mirror the way down.
fn attention(keys: &mut Keys, levels: usize) -> Result<Vec<bool>> {
    let default = |cross: &str, plain: &str| {
        let mut types = vec![cross.to_string(); levels.saturating_sub(1)];
        types.push(plain.to_string());
        types
    };
    let down = default("CrossAttnDownBlock2D", "DownBlock2D");
    let up: Vec<String> = default("CrossAttnUpBlock2D", "UpBlock2D").into_iter().rev().collect();
    let down = block_types(keys, "down_block_types", down, ["CrossAttnDownBlock2D", "DownBlock2D"])?;
    let up = block_types(keys, "up_block_types", up, ["CrossAttnUpBlock2D", "UpBlock2D"])?;
    ensure!(
        down.len() == levels && up.iter().rev().eq(&down),
        BadData,
        "{}: 'up_block_types' must mirror 'down_block_types', one for each of {levels} levels",
        keys.source()
    );
    Ok(down)
}

fn block_types(
    keys: &mut Keys,
    key: &str,
    default: Vec<String>,
    [cross, plain]: [&str; 2],
) -> Result<Vec<bool>> {
    let source = keys.source().to_string();
    let attends = |name: String| match name.as_str() {
        name if name == cross => Ok(true),
        name if name == plain => Ok(false),
        other => {
            bail!(BadData, "{source}: '{key}' has '{other}'; only '{cross}' and '{plain}' are supported")
        }
    };
    keys.take(key, default)?.into_iter().map(attends).collect()
}

fn class_embedding(keys: &mut Keys) -> Result<Option<i64>> {
    let kind: Option<String> = keys.take_optional("class_embed_type")?;
    let length: Option<i64> = keys.take_optional("projection_class_embeddings_input_dim")?;
    let source = keys.source();
    match (kind.as_deref(), length) {
        (None, _) => Ok(None),
        (Some("projection"), Some(length)) if length > 0 => Ok(Some(length)),
        (Some("projection"), _) => {
            bail!(BadData, "{source}: 'projection_class_embeddings_input_dim' is missing")
        }
        (Some(other), _) => {
            bail!(
                BadData,
                "{source}: 'class_embed_type' = \"{other}\" is not supported, only \"projection\" is"
            )
        }
    }
}
