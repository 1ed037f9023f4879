//! Decoded images to normalised planes: transformers' `CLIPImageProcessor`, bit for bit.

use crate::image::{Image, ImageRef};
use crate::resample::Filter;
use crate::resize::{resize, shorter_side};
use equipoise_base::{Result, bail, ensure};
use equipoise_pretrained::Component;
use serde::Deserialize;
use tch::{Kind, Tensor};

/// Largest side of an image that is asked for; beyond it lies a damaged file.
const LARGEST: usize = 1 << 14;

/// What is done to an image, in this order; a step that the folder switches off is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipImageProcessor {
    /// Antialiased resize of bytes.
    pub resize: Option<Resize>,
    /// Height and width of the middle that is kept; black is added where the image is smaller.
    pub crop: Option<(usize, usize)>,
    /// Factor from bytes to numbers.
    pub rescale: Option<f64>,
    /// Mean and standard deviation of each channel, which become 0 and 1.
    pub normalize: Option<([f32; 3], [f32; 3])>,
}

/// Size after the resize.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resize {
    /// How large.
    pub size: Size,
    /// By which filter.
    pub filter: Filter,
}

/// How large an image becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// The shorter side, in proportion.
    Side(usize),
    /// The shorter side, in proportion.
    Shortest {
        /// Its length.
        shortest_edge: usize,
    },
    /// Both.
    Exact {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}

/// `preprocessor_config.json`, with transformers' defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    do_resize: bool,
    size: Size,
    resample: i64,
    do_center_crop: bool,
    crop_size: Size,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: Size::Shortest { shortest_edge: 224 },
            resample: 3,
            do_center_crop: true,
            crop_size: Size::Side(224),
            do_rescale: true,
            rescale_factor: 1. / 255.,
            do_normalize: true,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }
}

impl ClipImageProcessor {
    /// Reads a `feature_extractor` component.
    ///
    /// # Errors
    /// 65 naming the file and the key that is wrong or not supported; 74 if it cannot be read.
    pub fn open(component: &Component) -> Result<Self> {
        let source = component.config_path()?;
        let source = source.display();
        let config: Config = component.config()?;
        let filter = match config.resample {
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            other => {
                bail!(BadData, "{source}: resample {other}: only 2 (bilinear) and 3 (bicubic) are supported")
            }
        };
        let crop = match config.crop_size {
            Size::Side(side) | Size::Shortest { shortest_edge: side } => (side, side),
            Size::Exact { height, width } => (height, width),
        };
        let (height, width) = match config.size {
            Size::Side(side) | Size::Shortest { shortest_edge: side } => (side, side),
            Size::Exact { height, width } => (height, width),
        };
        for side in [crop.0, crop.1, height, width] {
            ensure!((1..=LARGEST).contains(&side), BadData, "{source}: a side of {side} pixels");
        }
        ensure!(
            config.image_std.iter().all(|&std| std > 0.),
            BadData,
            "{source}: image_std {:?} is not positive",
            config.image_std
        );
        Ok(Self {
            resize: config.do_resize.then_some(Resize { size: config.size, filter }),
            crop: config.do_center_crop.then_some(crop),
            rescale: config.do_rescale.then_some(config.rescale_factor),
            normalize: config.do_normalize.then_some((config.image_mean, config.image_std)),
        })
    }

    /// Height and width of what comes out; `None` if they depend on the image.
    pub fn output_size(&self) -> Option<(usize, usize)> {
        self.crop.or(match self.resize?.size {
            Size::Exact { height, width } => Some((height, width)),
            Size::Side(_) | Size::Shortest { .. } => None,
        })
    }

    /// Resizes and cuts: RGB bytes as PIL gives them.
    pub fn pixels(&self, image: ImageRef<'_>) -> Image {
        let mut image = image.to_channels(3);
        if let Some(Resize { size, filter }) = self.resize {
            let (height, width) = match size {
                Size::Side(side) | Size::Shortest { shortest_edge: side } => {
                    shorter_side(image.height, image.width, side)
                }
                Size::Exact { height, width } => (height, width),
            };
            image = resize(image.view(), height, width, filter);
        }
        match self.crop {
            Some((height, width)) => middle(&image, height, width),
            None => image,
        }
    }

    /// One image of any size to [3, height, width] float32.
    pub fn process(&self, image: ImageRef<'_>) -> Tensor {
        let image = self.pixels(image);
        let (height, width) = (image.height, image.width);
        let mut planes = Vec::with_capacity(image.pixels.len());
        for channel in 0..3 {
            let table = self.table(channel);
            planes.extend(image.pixels.iter().skip(channel).step_by(3).map(|&byte| table[usize::from(byte)]));
        }
        Tensor::from_slice(&planes).to_kind(Kind::Float).view([3, height as i64, width as i64])
    }

    /// The number that each byte becomes: scaled in float64, normalised in float32, as the reference does.
    fn table(&self, channel: usize) -> [f32; 256] {
        std::array::from_fn(|byte| {
            let value = self.rescale.map_or(byte as f32, |factor| (byte as f64 * factor) as f32);
            self.normalize.map_or(value, |(mean, std)| (value - mean[channel]) / std[channel])
        })
    }
}

/// The middle `height` x `width` of an image, with black where the image is smaller.
///
/// An odd rest goes to the right and bottom when pixels are cut, to the left and top when they are added.
fn middle(image: &Image, height: usize, width: usize) -> Image {
    let start =
        |size: usize, cut: usize| (size.saturating_sub(cut) / 2, cut.saturating_sub(size).div_ceil(2));
    let ((top, above), (left, before)) = (start(image.height, height), start(image.width, width));
    let (rows, columns) = (height.min(image.height), width.min(image.width));
    let channels = image.channels;
    let mut pixels = vec![0; height * width * channels];
    for row in 0..rows {
        let from = ((top + row) * image.width + left) * channels;
        let to = ((above + row) * width + before) * channels;
        pixels[to..to + columns * channels].copy_from_slice(&image.pixels[from..from + columns * channels]);
    }
    Image { height, width, channels, pixels }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open(json: serde_json::Value) -> Result<ClipImageProcessor> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("preprocessor_config.json"), json.to_string()).unwrap();
        ClipImageProcessor::open(&Component::open(dir.path()).unwrap())
    }

    fn gray(height: usize, width: usize) -> Image {
        Image { height, width, channels: 1, pixels: (1..=(height * width) as u8).collect() }
    }

    #[test]
    fn sizes_in_all_spellings() {
        let old = open(json!({ "size": 8, "crop_size": 6 })).unwrap();
        let new = json!({ "size": { "shortest_edge": 8 }, "crop_size": { "height": 6, "width": 6 } });
        let new = open(new).unwrap();
        assert_eq!((old.output_size(), new.output_size()), (Some((6, 6)), Some((6, 6))));
        let image = gray(9, 11);
        assert!(old.process(image.view()).equal(&new.process(image.view())));
        let off = json!({ "do_resize": false, "do_center_crop": false, "do_normalize": false, "do_rescale": false });
        let off = open(off).unwrap().process(image.view());
        assert_eq!((off.size(), off.double_value(&[2, 0, 1])), (vec![3, 9, 11], 2.));
    }

    /// transformers' `center_crop`: `(size - cut) // 2`, and ceil of the half that is added.
    #[test]
    fn odd_rests() {
        assert_eq!(middle(&gray(4, 5), 1, 2).pixels, [7, 8]);
        assert_eq!(middle(&gray(1, 2), 2, 5).pixels, [0, 0, 0, 0, 0, 0, 0, 1, 2, 0]);
        assert_eq!(middle(&gray(1, 4), 2, 1).pixels, [0, 2]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let message = |json| open(json).unwrap_err().message().to_string();
        assert!(message(json!({ "resample": 1 })).contains("preprocessor_config.json: resample 1"));
        assert!(message(json!({ "image_std": [1, 0, 1] })).contains("image_std"));
        assert!(message(json!({ "crop_size": 0 })).contains("0 pixels"));
        assert!(message(json!({ "size": "big" })).contains("preprocessor_config.json"));
    }
}
