//! One transform of a recipe: its parameters, their checks, and how they are drawn.

use super::canvas::{Canvas, Window};
use super::draw;
use crate::resample::Filter;
use crate::resize::shorter_side;
use equipoise_base::rng::Stream;
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A transform. Ranges are `[low, high]`; `p` is the probability of being applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// Pads with zeros on all sides and cuts a window out anywhere.
    Crop {
        /// Zeros on each side.
        #[serde(default)]
        padding: usize,
        /// Side of the window; the size before padding if absent.
        #[serde(default)]
        size: Option<usize>,
    },
    /// Cuts a window of random area and shape out and resizes it to a square.
    ResizedCrop {
        /// Side of the result.
        size: usize,
        /// Share of the area.
        #[serde(default = "default_scale")]
        scale: [f64; 2],
        /// Width over height.
        #[serde(default = "default_ratio")]
        ratio: [f64; 2],
        /// Resampling filter.
        #[serde(default)]
        filter: Filter,
    },
    /// Resizes so that the shorter side has this size.
    Resize {
        /// Shorter side of the result.
        size: usize,
        /// Resampling filter.
        #[serde(default)]
        filter: Filter,
    },
    /// Cuts a square out of the middle.
    CenterCrop {
        /// Side of the result.
        size: usize,
    },
    /// Mirrors left and right.
    Hflip {
        /// Probability.
        #[serde(default = "half")]
        p: f64,
    },
    /// Changes brightness, contrast, saturation and hue in a random order.
    ColorJitter {
        /// Factor in `[1 - b, 1 + b]`, not below 0.
        #[serde(default)]
        brightness: f64,
        /// Factor in `[1 - c, 1 + c]`, not below 0.
        #[serde(default)]
        contrast: f64,
        /// Factor in `[1 - s, 1 + s]`, not below 0.
        #[serde(default)]
        saturation: f64,
        /// Shift in `[-h, h]`, h at most 0.5.
        #[serde(default)]
        hue: f64,
        /// Probability.
        #[serde(default = "one")]
        p: f64,
    },
    /// Three equal channels.
    Grayscale {
        /// Probability.
        #[serde(default = "default_grayscale")]
        p: f64,
    },
    /// Gaussian blur.
    GaussianBlur {
        /// Positions along each axis, odd.
        kernel: usize,
        /// Standard deviation in pixels.
        #[serde(default = "default_sigma")]
        sigma: [f64; 2],
        /// Probability.
        #[serde(default = "half")]
        p: f64,
    },
    /// `(x - mean) / std`, one value per channel or one for all.
    Normalize {
        /// Means.
        mean: Vec<f32>,
        /// Standard deviations.
        std: Vec<f32>,
    },
    /// Sets a random rectangle to 0.
    Erase {
        /// Probability.
        #[serde(default = "half")]
        p: f64,
        /// Share of the area.
        #[serde(default = "default_erase_scale")]
        scale: [f64; 2],
        /// Height over width.
        #[serde(default = "default_erase_ratio")]
        ratio: [f64; 2],
    },
}

fn half() -> f64 {
    0.5
}

fn one() -> f64 {
    1.0
}

fn default_grayscale() -> f64 {
    0.1
}

fn default_scale() -> [f64; 2] {
    [0.08, 1.0]
}

fn default_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

fn default_sigma() -> [f64; 2] {
    [0.1, 2.0]
}

fn default_erase_scale() -> [f64; 2] {
    [0.02, 0.33]
}

fn default_erase_ratio() -> [f64; 2] {
    [0.3, 3.3]
}

impl Op {
    /// Name in recipes and messages, and purpose of its random numbers.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Crop { .. } => "crop",
            Self::ResizedCrop { .. } => "resized_crop",
            Self::Resize { .. } => "resize",
            Self::CenterCrop { .. } => "center_crop",
            Self::Hflip { .. } => "hflip",
            Self::ColorJitter { .. } => "color_jitter",
            Self::Grayscale { .. } => "grayscale",
            Self::GaussianBlur { .. } => "gaussian_blur",
            Self::Normalize { .. } => "normalize",
            Self::Erase { .. } => "erase",
        }
    }

    /// Height and width after the transform.
    pub(super) fn output_size(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Crop { size: Some(size), .. }
            | Self::ResizedCrop { size, .. }
            | Self::CenterCrop { size } => [*size; 2],
            Self::Resize { size, .. } => shorter_side(height, width, *size).into(),
            _ => [height, width],
        }
    }

    /// Checks the parameters.
    pub(super) fn check(&self, channels: usize) -> Result<()> {
        match self {
            Self::Crop { size, .. } => positive(size.unwrap_or(1)),
            Self::Resize { size, .. } | Self::CenterCrop { size } => positive(*size),
            Self::ResizedCrop { size, scale, ratio, .. } => {
                positive(*size)?;
                range("scale", *scale)?;
                ensure!(
                    scale[1] <= 1.0,
                    Config,
                    "scale is {scale:?}: an image has no more than all of its area"
                );
                range("ratio", *ratio)
            }
            Self::Hflip { p } | Self::Grayscale { p } => probability(*p),
            Self::ColorJitter { brightness, contrast, saturation, hue, p } => {
                for (name, value) in
                    [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)]
                {
                    ensure!(
                        (0.0..=1e3).contains(value),
                        Config,
                        "{name} is {value}: it must not be negative"
                    );
                }
                ensure!((0.0..=0.5).contains(hue), Config, "hue is {hue}: it must lie in [0, 0.5]");
                probability(*p)
            }
            Self::GaussianBlur { kernel, sigma, p } => {
                ensure!(kernel % 2 == 1, Config, "kernel is {kernel}: it must be odd");
                range("sigma", *sigma)?;
                probability(*p)
            }
            Self::Normalize { mean, std } => {
                for (name, values) in [("mean", mean), ("std", std)] {
                    let given = values.len();
                    let fits = given == 1 || given == channels;
                    ensure!(fits, Config, "{name} has {given} values for {channels} channel(s)");
                }
                ensure!(std.iter().all(|&value| value > 0.0), Config, "std is {std:?}: it must be positive");
                Ok(())
            }
            Self::Erase { p, scale, ratio } => {
                range("scale", *scale)?;
                range("ratio", *ratio)?;
                probability(*p)
            }
        }
    }

    /// The window of a [`Op::ResizedCrop`]; all of the image for other transforms.
    pub(super) fn window(&self, height: usize, width: usize, stream: &mut Stream) -> Window {
        match self {
            Self::ResizedCrop { scale, ratio, .. } => {
                draw::resized_crop(height, width, *scale, *ratio, stream)
            }
            _ => Window::whole(height, width),
        }
    }

    /// Transforms the canvas with parameters from the stream.
    pub(super) fn apply(&self, canvas: &mut Canvas, stream: &mut Stream) {
        match self {
            Self::Crop { padding, size } => crop(canvas, *padding, *size, stream),
            Self::ResizedCrop { size, filter, .. } => {
                canvas.crop(self.window(canvas.height(), canvas.width(), stream));
                canvas.resize(*size, *size, *filter);
            }
            Self::Resize { size, filter } => canvas.resize_shorter(*size, *filter),
            Self::CenterCrop { size } => canvas.center_crop(*size, *size),
            Self::Hflip { p } if stream.bernoulli(*p) => canvas.hflip(),
            Self::ColorJitter { brightness, contrast, saturation, hue, p } if stream.bernoulli(*p) => {
                color_jitter(canvas, [*brightness, *contrast, *saturation], *hue, stream);
            }
            Self::Grayscale { p } if stream.bernoulli(*p) => canvas.grayscale(),
            Self::GaussianBlur { kernel, sigma, p } if stream.bernoulli(*p) => {
                let sigma = stream.range(sigma[0], sigma[1]);
                canvas.gaussian_blur([*kernel; 2], [sigma; 2]);
            }
            Self::Normalize { mean, std } => canvas.normalize(mean, std),
            Self::Erase { p, scale, ratio } if stream.bernoulli(*p) => {
                if let Some(window) = draw::erased(canvas.height(), canvas.width(), *scale, *ratio, stream) {
                    canvas.erase(window);
                }
            }
            // The coin said no.
            Self::Hflip { .. }
            | Self::ColorJitter { .. }
            | Self::Grayscale { .. }
            | Self::GaussianBlur { .. }
            | Self::Erase { .. } => {}
        }
    }
}

/// A window of an image that is smaller than it even with its padding is padded further, as torchvision can.
fn crop(canvas: &mut Canvas, padding: usize, size: Option<usize>, stream: &mut Stream) {
    let (h, w) = (size.unwrap_or(canvas.height()), size.unwrap_or(canvas.width()));
    let rows = padding.max(h.saturating_sub(canvas.height()).div_ceil(2));
    let columns = padding.max(w.saturating_sub(canvas.width()).div_ceil(2));
    let (height, width) = (canvas.height() + 2 * rows, canvas.width() + 2 * columns);
    let window = draw::place(height, width, h, w, stream);
    canvas.pad_crop([columns, rows, columns, rows], window);
}

/// The four factors are drawn whether or not they are used, so that one does not change the others.
fn color_jitter(canvas: &mut Canvas, spreads: [f64; 3], hue: f64, stream: &mut Stream) {
    let order = stream.permutation(4);
    let [brightness, contrast, saturation] =
        spreads.map(|spread| stream.range((1.0 - spread).max(0.0), 1.0 + spread) as f32);
    let shift = stream.range(-hue, hue) as f32;
    for which in order {
        match which {
            0 if spreads[0] > 0.0 => canvas.brightness(brightness),
            1 if spreads[1] > 0.0 => canvas.contrast(contrast),
            2 if spreads[2] > 0.0 => canvas.saturation(saturation),
            3 if hue > 0.0 => canvas.hue(shift),
            _ => {}
        }
    }
}

fn positive(size: usize) -> Result<()> {
    ensure!(size > 0, Config, "size must be at least 1");
    Ok(())
}

fn probability(p: f64) -> Result<()> {
    ensure!((0.0..=1.0).contains(&p), Config, "p is {p}: a probability lies in [0, 1]");
    Ok(())
}

fn range(name: &str, [low, high]: [f64; 2]) -> Result<()> {
    ensure!(
        low > 0.0 && low <= high && high.is_finite(),
        Config,
        "{name} is [{low}, {high}]: it must be positive and ascending"
    );
    Ok(())
}
