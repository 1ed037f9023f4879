//! Kind `clip_image_processor`: an image resized, cut and normalised as PIL and transformers do.

use crate::case::{Case, Tensors};
use equipoise_base::{Result, ensure};
use equipoise_data::clip::{ClipImageProcessor, Resize, Size};
use equipoise_data::{Filter, Image};
use tch::{Kind, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let tensor = case.input("image")?;
    let size = tensor.size();
    ensure!(size.len() == 3 && size[2] == 3, BadData, "{}: image is {size:?}", case.dir.display());
    let (height, width) = (size[0] as usize, size[1] as usize);
    let image = Image { height, width, channels: 3, pixels: equipoise_nn::weights::raw_bytes(tensor) };
    let processor = processor(case)?;
    let cut = processor.pixels(image.view());
    let shape = [cut.height as i64, cut.width as i64, 3];
    let mut got = Tensors::from([
        ("pixel_values".into(), processor.process(image.view()).unsqueeze(0)),
        ("uint8".into(), Tensor::from_slice(&cut.pixels).view(shape)),
    ]);
    if case.expects("pixel_values_float") {
        got.insert("pixel_values_float".into(), in_float(case, &processor, tensor)?);
    }
    Ok(got)
}

fn processor(case: &Case) -> Result<ClipImageProcessor> {
    let crop: [usize; 2] = case.param("crop")?;
    let resize = Resize {
        size: Size::Shortest { shortest_edge: case.param("shortest_edge")? },
        filter: Filter::Bicubic,
    };
    Ok(ClipImageProcessor {
        resize: Some(resize),
        crop: Some((crop[0], crop[1])),
        rescale: Some(1. / 255.),
        normalize: Some((case.param("mean")?, case.param("std")?)),
    })
}

/// The diagnostic path: torch's antialiased bicubic on float32 grey levels, which are cut to [0, 255] at the end only.
fn in_float(case: &Case, processor: &ClipImageProcessor, image: &Tensor) -> Result<Tensor> {
    let edge: i64 = case.param("shortest_edge")?;
    let crop: [i64; 2] = case.param("crop")?;
    let (height, width) = (image.size()[0], image.size()[1]);
    let scaled = |side: i64| edge * side / height.min(width);
    ensure!(
        crop[0] <= scaled(height) && crop[1] <= scaled(width),
        BadData,
        "{}: pixel_values_float is defined for cuts inside the image",
        case.dir.display()
    );
    let planes = image.permute([2, 0, 1]).unsqueeze(0).to_kind(Kind::Float);
    let resized = planes.internal_upsample_bicubic2d_aa([scaled(height), scaled(width)], false, None, None);
    let start = |side: i64, cut: i64| (scaled(side) - cut) / 2;
    let cut = resized
        .narrow(2, start(height, crop[0]), crop[0])
        .narrow(3, start(width, crop[1]), crop[1])
        .clamp(0., 255.);
    let (mean, std) = processor.normalize.unwrap_or_default();
    let channels = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
    Ok((cut / 255. - channels(mean)) / channels(std))
}
