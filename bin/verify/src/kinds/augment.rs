//! Kind `augment`: torchvision's transforms with explicit parameters, one after the other.
//!
//! The crate works on floats in [0, 1] throughout; bytes go in as `x / 255` and come out rounded.

use crate::case::{Case, Tensors};
use equipoise_base::{Error, Result};
use equipoise_data::Filter;
use equipoise_data::augment::{Canvas, Window};
use serde::Deserialize;
use tch::{Kind, Tensor};

/// A transform of `params.ops`.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Op {
    Crop { top: usize, left: usize, height: usize, width: usize },
    ResizedCrop { top: usize, left: usize, height: usize, width: usize, size: [usize; 2], mode: Filter },
    Resize { size: Vec<usize>, mode: Filter },
    CenterCrop { size: [usize; 2] },
    Hflip,
    Pad { pad: [usize; 4] },
    Brightness { f: f32 },
    Contrast { f: f32 },
    Saturation { f: f32 },
    Hue { f: f32 },
    Grayscale,
    GaussianBlur { kernel: [usize; 2], sigma: [f64; 2] },
    Normalize { mean: Vec<f32>, std: Vec<f32> },
    ToFloat,
    Erase { top: usize, left: usize, height: usize, width: usize },
}

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let image = case.input("image")?;
    let mut bytes = image.kind() == Kind::Uint8;
    let scale = if bytes { 255.0 } else { 1.0 };
    let data = Vec::<f32>::try_from((image.to_kind(Kind::Float) / scale).flatten(0, -1))
        .map_err(|error| case.broken(&format!("input 'image': {error}")))?;
    let [channels, height, width] = image.size()[..] else {
        return Err(case.broken("input 'image' is not [C,H,W]"));
    };
    let mut canvas = Canvas::new(channels as usize, height as usize, width as usize, data);
    let mut got = Tensors::new();
    for (position, op) in case.param::<Vec<Op>>("ops")?.into_iter().enumerate() {
        bytes &= !matches!(op, Op::ToFloat);
        apply(op, &mut canvas).map_err(|what| case.broken(&format!("op {position}: {}", what.message())))?;
        let size = [canvas.channels(), canvas.height(), canvas.width()].map(|length| length as i64);
        let out = Tensor::from_slice(canvas.planes()).view(size);
        let out = if bytes { (out * 255.0).round().to_kind(Kind::Uint8) } else { out };
        got.insert(format!("out_{position}"), out);
    }
    Ok(got)
}

fn apply(op: Op, canvas: &mut Canvas) -> Result<()> {
    match op {
        Op::Crop { top, left, height, width } => canvas.crop(Window { top, left, height, width }),
        Op::ResizedCrop { top, left, height, width, size, mode } => {
            canvas.crop(Window { top, left, height, width });
            canvas.resize(size[0], size[1], mode);
        }
        Op::Resize { size, mode } => match size[..] {
            [side] => canvas.resize_shorter(side, mode),
            [height, width] => canvas.resize(height, width, mode),
            _ => return Err(Error::data(format!("size {size:?} is neither [s] nor [h, w]"))),
        },
        Op::CenterCrop { size: [height, width] } => canvas.center_crop(height, width),
        Op::Hflip => canvas.hflip(),
        Op::Pad { pad } => canvas.pad(pad),
        Op::Brightness { f } => canvas.brightness(f),
        Op::Contrast { f } => canvas.contrast(f),
        Op::Saturation { f } => canvas.saturation(f),
        Op::Hue { f } => canvas.hue(f),
        Op::Grayscale => canvas.grayscale(),
        Op::GaussianBlur { kernel, sigma } => canvas.gaussian_blur(kernel, sigma),
        Op::Normalize { mean, std } => canvas.normalize(&mean, &std),
        Op::ToFloat => {}
        Op::Erase { top, left, height, width } => canvas.erase(Window { top, left, height, width }),
    }
    Ok(())
}
