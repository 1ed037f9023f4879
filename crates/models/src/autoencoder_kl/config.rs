//! `config.json` of an `AutoencoderKL`.

use crate::hf_config::Keys;
use equipoise_base::{Result, ensure};
use serde_json::{Value, json};

/// Size of an autoencoder; names and defaults as in diffusers.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderKLConfig {
    /// Channels of an image.
    pub in_channels: i64,
    /// Channels of a decoded image.
    pub out_channels: i64,
    /// Channels of the latent image.
    pub latent_channels: i64,
    /// Channels of each level, finest first; all but the last halve height and width.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: i64,
    /// Groups of group norm.
    pub norm_num_groups: i64,
    /// Latent images are multiplied by this before diffusion, so that they have about unit variance.
    pub scaling_factor: f64,
}

impl AutoencoderKLConfig {
    /// Reads a `config.json`; `source` names the file in errors.
    ///
    /// # Errors
    /// 65 naming the key whose value is no such network, or one that this build has not.
    pub fn from_json(source: &str, json: Value) -> Result<Self> {
        let mut keys = Keys::new(source, json)?;
        let config = Self {
            in_channels: keys.take("in_channels", 3)?,
            out_channels: keys.take("out_channels", 3)?,
            latent_channels: keys.take("latent_channels", 4)?,
            block_out_channels: keys.take("block_out_channels", vec![64])?,
            layers_per_block: keys.take("layers_per_block", 1)?,
            norm_num_groups: keys.take("norm_num_groups", 32)?,
            scaling_factor: keys.take("scaling_factor", 0.18215)?,
        };
        let levels = config.block_out_channels.len();
        keys.only(&[
            ("act_fn", json!("silu")),
            ("down_block_types", json!(vec!["DownEncoderBlock2D"; levels])),
            ("up_block_types", json!(vec!["UpDecoderBlock2D"; levels])),
            ("mid_block_add_attention", json!(true)),
            ("shift_factor", json!(0)),
            ("use_post_quant_conv", json!(true)),
            ("use_quant_conv", json!(true)),
        ])?;
        // Neither changes what the network computes: the size it was trained at, and advice on float16.
        let _: (Option<Value>, Option<Value>) =
            (keys.take_optional("sample_size")?, keys.take_optional("force_upcast")?);
        config.check(source)?;
        keys.finish()?;
        Ok(config)
    }

    fn check(&self, source: &str) -> Result<()> {
        let groups = self.norm_num_groups;
        ensure!(
            [self.in_channels, self.out_channels, self.latent_channels, self.layers_per_block, groups]
                .iter()
                .all(|&count| count > 0),
            BadData,
            "{source}: channels, layers and groups must be positive"
        );
        ensure!(
            self.scaling_factor.is_finite() && self.scaling_factor > 0.,
            BadData,
            "{source}: 'scaling_factor' = {}: want a positive number",
            self.scaling_factor
        );
        ensure!(!self.block_out_channels.is_empty(), BadData, "{source}: 'block_out_channels' is empty");
        for &channels in &self.block_out_channels {
            ensure!(
                channels > 0 && channels % groups == 0,
                BadData,
                "{source}: {channels} channels do not divide into {groups} groups"
            );
        }
        Ok(())
    }

    /// Pixels along one side of a latent pixel.
    pub fn downscale(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }
}
