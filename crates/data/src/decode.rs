//! JPEG and PNG files to pixels, as PIL decodes them, within limits that are checked on the header.

use crate::image::{Image, luma};
use equipoise_base::{Error, ExitCode, Result, ResultExt, bail, ensure};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io::Cursor;

/// What a decoder may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest height x width. PIL warns above 89 million.
    pub max_pixels: u64,
    /// Largest ratio of the sides: a 1 x 60000 strip would grow to billions of pixels when its shorter side is resized.
    pub max_aspect: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 89_478_485, max_aspect: 64 }
    }
}

/// Decodes one file to `channels` (1 or 3) bytes per pixel, turned upright as its EXIF data say.
///
/// Palettes are looked up, alpha is dropped as PIL's `convert("RGB")` does, 16 bits become 8 (rounded, where PIL cuts
/// off: at most one step apart), CMYK and YCCK become RGB. A file that ends too early is an error, not a half-gray image.
///
/// # Errors
/// 65 with the reason; the caller knows the file's name.
pub fn decode(bytes: &[u8], channels: usize, limits: &Limits) -> Result<Image> {
    ensure!(!bytes.is_empty(), BadData, "the file is empty");
    let reader = ImageReader::new(Cursor::new(bytes));
    let mut reader = reader.with_guessed_format().or_exit(ExitCode::BadData, "unreadable")?;
    let format = reader.format().ok_or_else(|| Error::data("neither JPEG nor PNG"))?;
    // Dimensions are checked below, before pixels are allocated; this bounds what a PNG's text chunks may inflate to.
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(8).max(1 << 20));
    reader.limits(allowed);
    let mut decoder = reader.into_decoder().or_exit(ExitCode::BadData, "damaged header")?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        bail!(BadData, "{width} x {height} is more than max_pixels = {}", limits.max_pixels);
    }
    ensure!(pixels > 0, BadData, "{width} x {height} has no pixels");
    if width.max(height) / width.min(height) > limits.max_aspect {
        bail!(BadData, "{width} x {height} is more elongated than max_aspect = {}", limits.max_aspect);
    }
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        bail!(BadData, "the JPEG data end too early");
    }
    // Damaged EXIF data do not make an image bad.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut decoded = DynamicImage::from_decoder(decoder).or_exit(ExitCode::BadData, "damaged")?;
    decoded.apply_orientation(orientation);
    Ok(to_bytes(decoded, channels))
}

fn to_bytes(decoded: DynamicImage, channels: usize) -> Image {
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let pixels = match (channels, decoded.color().has_color()) {
        (1, false) => decoded.into_luma8().into_raw(),
        (1, true) => {
            let rgb = decoded.into_rgb8().into_raw();
            rgb.chunks_exact(3).map(|rgb| luma(rgb[0], rgb[1], rgb[2])).collect()
        }
        _ => decoded.into_rgb8().into_raw(),
    };
    Image { height, width, channels, pixels }
}

/// Whether an end-of-image marker follows the start of the first scan.
///
/// The decoder forgives a missing end and leaves the rest gray. In the data of a scan, 0xFF is always stuffed, so the
/// marker found there is one; markers in thumbnails lie inside segments, which are stepped over.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == 0xff {
            at += 1; // a fill byte
            continue;
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        if marker == START_OF_SCAN {
            return bytes.get(at..).is_some_and(|scan| scan.windows(2).any(|pair| pair == [0xff, 0xd9]));
        }
    }
    false
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder, codecs};

    pub(crate) fn png(pixels: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        codecs::png::PngEncoder::new(&mut bytes).write_image(pixels, width, height, color).unwrap();
        bytes
    }

    pub(crate) fn jpeg(pixels: &[u8], width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let encoder = codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.write_image(pixels, width, height, ExtendedColorType::Rgb8).unwrap();
        bytes
    }

    fn rgb(bytes: &[u8]) -> Result<Image> {
        decode(bytes, 3, &Limits::default())
    }

    fn reason(bytes: &[u8]) -> String {
        let error = rgb(bytes).unwrap_err();
        assert_eq!(error.code(), ExitCode::BadData);
        error.to_string()
    }

    #[test]
    fn png_of_every_kind() {
        assert_eq!(rgb(&png(&[1, 2, 3], 1, 1, ExtendedColorType::Rgb8)).unwrap().pixels, [1, 2, 3]);
        assert_eq!(rgb(&png(&[1, 2, 3, 0], 1, 1, ExtendedColorType::Rgba8)).unwrap().pixels, [1, 2, 3]);
        assert_eq!(rgb(&png(&[9], 1, 1, ExtendedColorType::L8)).unwrap().pixels, [9, 9, 9]);
        let deep = png(&[0x80u16, 0xffff].map(u16::to_ne_bytes).concat(), 2, 1, ExtendedColorType::L16);
        assert_eq!(decode(&deep, 1, &Limits::default()).unwrap().pixels, [0, 255]);
        let gray = decode(&png(&[255, 0, 0], 1, 1, ExtendedColorType::Rgb8), 1, &Limits::default()).unwrap();
        assert_eq!(gray.pixels, [76]);
    }

    #[test]
    fn jpeg_is_close_and_upright() {
        // Left half dark, right half bright.
        let pixels: Vec<u8> = (0..16 * 8).flat_map(|i| [if i % 16 < 8 { 20 } else { 220 }; 3]).collect();
        let plain = jpeg(&pixels, 16, 8);
        let image = rgb(&plain).unwrap();
        assert_eq!((image.height, image.width), (8, 16));
        assert!(image.pixels.iter().zip(&pixels).all(|(a, b)| a.abs_diff(*b) < 8));

        // Orientation 6: turn by 90 degrees clockwise, so the dark half comes to the top.
        let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
        let mut turned = plain[..2].to_vec();
        turned.extend([0xff, 0xe1]);
        turned.extend((exif.len() as u16 + 2).to_be_bytes());
        turned.append(&mut exif);
        turned.extend_from_slice(&plain[2..]);
        let image = rgb(&turned).unwrap();
        assert_eq!((image.height, image.width), (16, 8));
        assert!(image.pixels[0] < 60 && image.pixels[image.pixels.len() - 1] > 180);
    }

    /// Written by PIL 13.0.0: `Image.new("CMYK", (8, 8), (0, 200, 200, 0))`, whose RGB is (255, 55, 55).
    #[test]
    fn cmyk_becomes_rgb() {
        let image = rgb(include_bytes!("../tests/files/cmyk.jpg")).unwrap();
        assert_eq!((image.height, image.width), (8, 8));
        assert!(
            image.pixels[0] > 240 && image.pixels[1].abs_diff(55) < 12 && image.pixels[2].abs_diff(55) < 12
        );
    }

    #[test]
    fn truncated_files() {
        let noise: Vec<u8> =
            (0..64 * 64 * 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for whole in [jpeg(&noise, 64, 64), png(&noise, 64, 64, ExtendedColorType::Rgb8)] {
            rgb(&whole).unwrap();
            for keep in [1, 2, 3, 4, 10, 30, whole.len() / 2, whole.len() - 30] {
                assert!(rgb(&whole[..keep]).is_err(), "{keep} of {} bytes", whole.len());
            }
        }
    }

    #[test]
    fn what_is_no_image() {
        assert!(reason(b"").contains("empty"));
        assert!(reason(b"not an image at all").contains("neither JPEG nor PNG"));
        assert!(reason(&[0xff, 0xd8, 0xff]).contains("damaged header"));
    }

    /// Only the header exists: rejected by its size before anything is allocated.
    #[test]
    fn bombs() {
        let mut bomb = png(&[0], 1, 1, ExtendedColorType::L8);
        bomb[16..20].copy_from_slice(&30_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&30_000u32.to_be_bytes());
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(reason(&bomb).contains("30000 x 30000"), "{}", reason(&bomb));
        let small = Limits { max_pixels: 3, ..Limits::default() };
        assert!(decode(&jpeg(&[0; 12], 2, 2), 3, &small).is_err());
        assert!(decode(&jpeg(&[0; 9], 3, 1), 3, &small).is_ok());
    }

    #[test]
    fn strips() {
        let strip = |width| png(&vec![0; width as usize], width, 1, ExtendedColorType::L8);
        assert!(rgb(&strip(64)).is_ok());
        assert!(reason(&strip(65)).contains("more elongated than max_aspect"));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }
}
