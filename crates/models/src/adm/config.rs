//! What a person chooses of an ADM network, and what the data decide.

use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Groups of every group norm, as in the reference.
pub(super) const GROUPS: i64 = 32;

/// Size of an ADM network; names and meaning as in `guided_diffusion.unet.UNetModel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdmConfig {
    /// Base number of channels.
    pub model_channels: i64,
    /// Channels of each resolution level as a multiple of the base; each level halves the size.
    pub channel_mult: Vec<f64>,
    /// Residual blocks per level.
    pub num_res_blocks: i64,
    /// Down-sampling rates (1, 2, 4, ..) at which there is attention; the bottleneck always has it.
    pub attention_resolutions: Vec<i64>,
    /// Attention heads; used when `num_head_channels` is -1.
    pub num_heads: i64,
    /// Channels of one head; -1 counts heads instead.
    pub num_head_channels: i64,
    /// Heads on the way up; -1 is `num_heads`.
    pub num_heads_upsample: i64,
    /// Whether the time embedding scales and shifts the norm (AdaGN) instead of being added.
    pub use_scale_shift_norm: bool,
    /// Whether residual blocks change the resolution instead of convolutions or plain pooling.
    pub resblock_updown: bool,
    /// Whether plain up- and down-sampling has a convolution.
    pub conv_resample: bool,
    /// Channel order (q k v, head) instead of (head, q k v).
    pub use_new_attention_order: bool,
    /// Side of the pixel block that becomes channels before the network; 1 is the reference.
    pub patch: i64,
    /// Whether the output has as many channels again for the reverse variance, learned too (Nichol and Dhariwal 2021).
    pub learn_sigma: bool,
}

/// What the data and the objective decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmShape {
    /// Height and width of the images.
    pub image_size: i64,
    /// Channels of the images.
    pub in_channels: i64,
    /// Channels of the output: those of the images, twice that with a learned variance, or classes of an encoder.
    pub out_channels: i64,
    /// Rows of the label embedding, `None` if unconditional. For classifier-free guidance there is one more row than
    /// classes: the last is the null label.
    pub labels: Option<i64>,
}

/// How [`super::AdmEncoder`] turns its feature map into logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdmPool {
    /// Average over positions, then a 1x1 convolution.
    Adaptive,
    /// Attention from the average position to all positions (the published classifiers).
    Attention,
    /// Averages of every block's output, then two linear layers with ReLU.
    Spatial,
    /// The same with a group norm and SiLU.
    SpatialV2,
}

impl AdmConfig {
    /// Output channels of a generator of images with `channels`.
    pub fn out_channels(&self, channels: i64) -> i64 {
        if self.learn_sigma { 2 * channels } else { channels }
    }

    /// Checks everything that construction relies on.
    ///
    /// # Errors
    /// 78 naming the key and the remedy.
    pub fn check(&self, shape: &AdmShape) -> Result<()> {
        let AdmShape { image_size, in_channels, out_channels, labels } = *shape;
        ensure!(
            !self.channel_mult.is_empty(),
            Config,
            "channel_mult: an ADM network needs at least one level"
        );
        let base = self.model_channels;
        ensure!(
            base > 0 && base % 2 == 0,
            Config,
            "model_channels = {base}: the sinusoid needs an even number"
        );
        ensure!(self.num_res_blocks >= 1, Config, "num_res_blocks = {}: at least 1", self.num_res_blocks);
        ensure!(self.patch >= 1, Config, "patch = {}: at least 1", self.patch);
        ensure!(
            in_channels >= 1 && out_channels >= 1,
            Config,
            "an ADM network of {in_channels} to {out_channels} channels"
        );
        ensure!(labels.is_none_or(|rows| rows >= 1), Config, "a label embedding without rows");
        self.check_size(image_size)?;
        for (level, &mult) in self.channel_mult.iter().enumerate() {
            let channels = self.channels(level);
            ensure!(
                channels > 0 && channels % GROUPS == 0,
                Config,
                "channel_mult: level {level} has {} x {mult} = {channels} channels, not a positive multiple of the \
                 {GROUPS} groups of group norm",
                self.model_channels
            );
            self.check_heads(level, channels)?;
        }
        Ok(())
    }

    fn check_size(&self, image_size: i64) -> Result<()> {
        let multiple = self.patch << (self.channel_mult.len() - 1);
        ensure!(
            image_size > 0 && image_size % multiple == 0,
            Config,
            "image size {image_size} is not a multiple of {multiple} (patch {} x 2 per step between the {} levels of \
             channel_mult): change the size, patch or the number of levels",
            self.patch,
            self.channel_mult.len()
        );
        Ok(())
    }

    fn check_heads(&self, level: usize, channels: i64) -> Result<()> {
        let lowest = level + 1 == self.channel_mult.len();
        if !lowest && !self.attention_resolutions.contains(&(1 << level)) {
            return Ok(());
        }
        for (key, heads) in [("num_heads", self.num_heads), ("num_heads_upsample", self.heads_up())] {
            let (key, divisor) = match self.num_head_channels {
                -1 => (key, heads),
                per_head => ("num_head_channels", per_head),
            };
            ensure!(
                divisor > 0 && channels % divisor == 0,
                Config,
                "{key} = {divisor} does not divide the {channels} channels of level {level}"
            );
        }
        Ok(())
    }

    /// Channels of a level.
    pub(super) fn channels(&self, level: usize) -> i64 {
        (self.channel_mult[level] * self.model_channels as f64) as i64
    }

    /// Heads of an attention block on the way down or in the middle.
    pub(super) fn heads_down(&self, channels: i64) -> i64 {
        self.heads(self.num_heads, channels)
    }

    /// Heads of an attention block on the way up.
    pub(super) fn heads_upward(&self, channels: i64) -> i64 {
        self.heads(self.heads_up(), channels)
    }

    fn heads(&self, count: i64, channels: i64) -> i64 {
        if self.num_head_channels == -1 { count } else { channels / self.num_head_channels }
    }

    fn heads_up(&self) -> i64 {
        if self.num_heads_upsample == -1 { self.num_heads } else { self.num_heads_upsample }
    }

    /// Length of the time embedding.
    pub(super) fn embedding(&self) -> i64 {
        4 * self.model_channels
    }

    /// Values per position that one image channel becomes.
    pub(super) fn fold(&self) -> i64 {
        self.patch * self.patch
    }
}
