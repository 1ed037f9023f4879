//! How many parameters a network will have, before any is built: what checkpoints take on disk follows from it.
//!
//! The networks themselves are in `models`, whose tests compare these numbers with theirs. Keys that are left out have the
//! defaults of `models` here too.

use serde::Deserialize;

/// A classifier by the keys of `[classifier] arch`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ClassifierSize {
    /// CIFAR ResNet with parameter-free shortcuts.
    CifarResnet {
        /// 6n + 2.
        #[serde(default = "resnet32")]
        depth: u64,
        /// Channels of the first stage.
        #[serde(default = "sixteen")]
        width: u64,
        /// Whether the head has no bias.
        #[serde(default)]
        normalized_head: bool,
    },
    /// Bottleneck ResNet of any shape.
    BottleneckResnet(Bottlenecks),
    /// torchvision's.
    Resnet50 {},
    /// torchvision's.
    Resnet152 {},
    /// torchvision's.
    #[serde(rename = "resnext50_32x4d")]
    Resnext50 {},
}

fn resnet32() -> u64 {
    32
}

fn sixteen() -> u64 {
    16
}

/// Shape of a bottleneck ResNet.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Bottlenecks {
    layers: [u64; 4],
    base: u64,
    groups: u64,
    width_per_group: u64,
}

impl Default for Bottlenecks {
    fn default() -> Self {
        Self { layers: [3, 4, 6, 3], base: 64, groups: 1, width_per_group: 64 }
    }
}

impl ClassifierSize {
    /// Width of the features that the head sees.
    pub fn feature_dim(&self) -> u64 {
        match self {
            Self::CifarResnet { width, .. } => 4 * width,
            Self::BottleneckResnet(shape) => 32 * shape.base,
            Self::Resnet50 {} | Self::Resnet152 {} | Self::Resnext50 {} => 2048,
        }
    }

    /// Parameters of the network for images of `channels` and `classes` classes.
    pub fn count(&self, channels: u64, classes: u64) -> u64 {
        match self {
            Self::CifarResnet { depth, width, normalized_head } => {
                let mut total = conv_norm(3, channels, *width);
                let mut input = *width;
                for stage in 0..3 {
                    let planes = width << stage;
                    for _ in 0..depth.saturating_sub(2) / 6 {
                        total += conv_norm(3, input, planes) + conv_norm(3, planes, planes);
                        input = planes;
                    }
                }
                let bias = if *normalized_head { 0 } else { classes };
                total + input * classes + bias
            }
            Self::BottleneckResnet(shape) => shape.count(channels, classes),
            Self::Resnet50 {} => Bottlenecks::default().count(channels, classes),
            Self::Resnet152 {} => {
                Bottlenecks { layers: [3, 8, 36, 3], ..Bottlenecks::default() }.count(channels, classes)
            }
            Self::Resnext50 {} => Bottlenecks { groups: 32, width_per_group: 4, ..Bottlenecks::default() }
                .count(channels, classes),
        }
    }
}

impl Bottlenecks {
    fn count(&self, channels: u64, classes: u64) -> u64 {
        let groups = self.groups.max(1);
        let mut total = conv_norm(7, channels, self.base);
        let mut input = self.base;
        for (stage, &blocks) in self.layers.iter().enumerate() {
            let planes = self.base << stage;
            let (width, output) = (planes * self.width_per_group / 64 * groups, 4 * planes);
            for block in 0..blocks {
                total += conv_norm(1, input, width) + conv_norm(1, width, output);
                total += 9 * width * (width / groups) + 2 * width;
                if block == 0 && (stage > 0 || input != output) {
                    total += conv_norm(1, input, output);
                }
                input = output;
            }
        }
        total + input * classes + classes
    }
}

/// A square convolution without bias, and its batch norm.
fn conv_norm(kernel: u64, input: u64, output: u64) -> u64 {
    kernel * kernel * input * output + 2 * output
}

/// The U-Net of guided-diffusion by the keys of `[diffusion.model]`.
#[derive(Clone, Debug, Deserialize)]
pub struct UNetSize {
    model_channels: u64,
    channel_mult: Vec<f64>,
    num_res_blocks: u64,
    attention_resolutions: Vec<u64>,
    use_scale_shift_norm: bool,
    resblock_updown: bool,
    conv_resample: bool,
    patch: u64,
    #[serde(default)]
    learn_sigma: bool,
}

impl UNetSize {
    /// Parameters of the network for images of `channels` with `labels` rows of label embedding.
    pub fn count(&self, channels: u64, labels: u64) -> u64 {
        let embedding = 4 * self.model_channels;
        let fold = self.patch * self.patch;
        let first = self.width(0);
        let time = linear(self.model_channels, embedding) + linear(embedding, embedding) + labels * embedding;
        let mut total = time + conv(channels * fold, first);
        let mut skips = vec![first];
        let (mut current, levels) = (first, self.channel_mult.len());
        for level in 0..levels {
            for _ in 0..self.num_res_blocks {
                total += self.residual(current, self.width(level)) + self.attention(level);
                current = self.width(level);
                skips.push(current);
            }
            if level + 1 < levels {
                total += self.resample(current);
                skips.push(current);
            }
        }
        total += 2 * self.residual(current, current) + attention(current);
        for level in (0..levels).rev() {
            let width = self.width(level);
            for _ in 0..=self.num_res_blocks {
                total += self.residual(current + skips.pop().unwrap_or(0), width) + self.attention(level);
                current = width;
            }
            if level > 0 {
                total += self.resample(width);
            }
        }
        let out = if self.learn_sigma { 2 * channels } else { channels };
        total + 2 * first + conv(first, out * fold)
    }

    fn width(&self, level: usize) -> u64 {
        (self.channel_mult.get(level).copied().unwrap_or(1.) * self.model_channels as f64) as u64
    }

    fn residual(&self, input: u64, output: u64) -> u64 {
        let conditions = if self.use_scale_shift_norm { 2 * output } else { output };
        let skip = if input == output { 0 } else { linear(input, output) };
        2 * input
            + conv(input, output)
            + linear(4 * self.model_channels, conditions)
            + 2 * output
            + conv(output, output)
            + skip
    }

    fn attention(&self, level: usize) -> u64 {
        let here = self.attention_resolutions.contains(&(1 << level));
        if here { attention(self.width(level)) } else { 0 }
    }

    fn resample(&self, channels: u64) -> u64 {
        match (self.resblock_updown, self.conv_resample) {
            (true, _) => self.residual(channels, channels),
            (false, true) => conv(channels, channels),
            (false, false) => 0,
        }
    }
}

fn linear(input: u64, output: u64) -> u64 {
    input * output + output
}

fn conv(input: u64, output: u64) -> u64 {
    9 * input * output + output
}

fn attention(channels: u64) -> u64 {
    2 * channels + linear(channels, 3 * channels) + linear(channels, channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn published_networks_have_their_published_sizes() {
        let count = |arch| serde_json::from_value::<ClassifierSize>(arch).unwrap().count(3, 1000);
        assert_eq!(count(json!({"kind": "resnet50"})), 25_557_032);
        assert_eq!(count(json!({"kind": "resnet152"})), 60_192_808);
        assert_eq!(count(json!({"kind": "resnext50_32x4d"})), 25_028_904);
        assert!(serde_json::from_value::<ClassifierSize>(json!({"kind": "vit"})).is_err());
    }
}
