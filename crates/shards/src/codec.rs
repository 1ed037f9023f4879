//! Images of 8-bit samples and how they are stored.

use equipoise_base::{Error, ExitCode, Result, ResultExt as _, bail, ensure};
use image::codecs::{jpeg::JpegEncoder, png};
use image::{
    ColorType, DynamicImage, ImageDecoder as _, ImageEncoder as _, ImageFormat, ImageReader, Limits,
};
use std::borrow::Cow;
use std::fmt;
use std::io::Cursor;

/// Largest width and height that is decoded: beyond lies only the decompression bomb.
const MAX_SIDE: u32 = 1 << 15;

/// Most bytes that decoding one image may allocate.
const MAX_ALLOC: u64 = 1 << 29;

/// An image of 8-bit samples, rows first, channels last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 (gray) or 3 (RGB).
    pub channels: usize,
    /// `height * width * channels` samples.
    pub pixels: Vec<u8>,
}

impl Image {
    /// An image, if the number of samples fits the shape and the channels are 1 or 3.
    ///
    /// # Errors
    /// Exit code 65 otherwise.
    pub fn new(height: usize, width: usize, channels: usize, pixels: Vec<u8>) -> Result<Self> {
        let samples = height.checked_mul(width).and_then(|area| area.checked_mul(channels));
        ensure!(
            matches!(channels, 1 | 3) && samples == Some(pixels.len()),
            BadData,
            "an image of {height} x {width} x {channels} cannot have {} samples",
            pixels.len()
        );
        Ok(Self { height, width, channels, pixels })
    }

    /// [height, width, channels].
    pub fn shape(&self) -> [usize; 3] {
        [self.height, self.width, self.channels]
    }
}

/// How the images of a file are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Samples as they are.
    #[default]
    Raw,
    /// PNG: lossless, about half the size, slower.
    Png,
    /// JPEG of this quality, 1 to 100: lossy.
    Jpeg(u8),
    /// The source files byte by byte, PNG or JPEG as found. Only in prepared splits.
    Source,
}

/// Version of the bits that the encoders make of equal images; part of the identity of what they have written. The test
/// `encoders_write_the_bits_of_their_version` tells when it has to rise.
pub const ENCODER_VERSION: u32 = 1;

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Codec::Raw => f.write_str("raw"),
            Codec::Png => f.write_str("png"),
            Codec::Jpeg(quality) => write!(f, "jpeg:{quality}"),
            Codec::Source => f.write_str("source"),
        }
    }
}

impl std::str::FromStr for Codec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "raw" => return Ok(Codec::Raw),
            "png" => return Ok(Codec::Png),
            "source" => return Ok(Codec::Source),
            _ => {}
        }
        match text.strip_prefix("jpeg:").and_then(|quality| quality.parse().ok()) {
            Some(quality @ 1..=100) => Ok(Codec::Jpeg(quality)),
            _ => bail!(BadData, "codec \"{text}\" is none of raw, png, jpeg:1 to jpeg:100, source"),
        }
    }
}

impl Codec {
    /// Whether images are stored as samples of one shape rather than as encoded bytes.
    pub fn is_raw(self) -> bool {
        self == Codec::Raw
    }

    /// The bytes to store for this image.
    ///
    /// # Errors
    /// [`Codec::Source`] cannot encode; JPEG refuses empty images and sides above 65,535.
    pub fn encode(self, image: &Image) -> Result<Cow<'_, [u8]>> {
        match self {
            Codec::Raw => Ok(Cow::Borrowed(&image.pixels)),
            Codec::Png => encode_png(image).map(Cow::Owned),
            Codec::Jpeg(quality) => encode_jpeg(image, quality).map(Cow::Owned),
            Codec::Source => {
                Err(Error::new(ExitCode::Usage, "codec \"source\" stores files, it cannot encode images"))
            }
        }
    }
}

/// PNG with one fixed filter and compression level, so that equal images give equal bytes.
///
/// # Errors
/// An image without pixels.
pub fn encode_png(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    png::PngEncoder::new_with_quality(&mut bytes, png::CompressionType::Default, png::FilterType::Paeth)
        .write_image(&image.pixels, image.width as u32, image.height as u32, color(image).into())
        .or_exit(ExitCode::BadData, "cannot encode a PNG")?;
    Ok(bytes)
}

fn encode_jpeg(image: &Image, quality: u8) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .write_image(&image.pixels, image.width as u32, image.height as u32, color(image).into())
        .or_exit(ExitCode::BadData, "cannot encode a JPEG")?;
    Ok(bytes)
}

fn color(image: &Image) -> ColorType {
    if image.channels == 1 { ColorType::L8 } else { ColorType::Rgb8 }
}

/// Decodes a PNG or JPEG, told apart by its first bytes. Gray stays gray; everything else becomes RGB: alpha is
/// dropped, 16-bit samples are rounded to 8, CMYK is converted. An EXIF orientation is not applied.
///
/// # Errors
/// Anything that is not a complete PNG or JPEG of at most 32,768 x 32,768 pixels and 512 MiB.
pub fn decode(bytes: &[u8]) -> Result<Image> {
    let format = image::guess_format(bytes).or_exit(ExitCode::BadData, "neither a PNG nor a JPEG")?;
    ensure!(
        matches!(format, ImageFormat::Png | ImageFormat::Jpeg),
        BadData,
        "{format:?} images are not supported, only PNG and JPEG"
    );
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let decoder = reader.into_decoder().or_exit(ExitCode::BadData, "cannot decode")?;
    ensure!(decoder.total_bytes() <= MAX_ALLOC, BadData, "decodes to more than {MAX_ALLOC} bytes");
    let decoded = DynamicImage::from_decoder(decoder).or_exit(ExitCode::BadData, "cannot decode")?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    match decoded.color() {
        ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16 => {
            Image::new(height, width, 1, decoded.into_luma8().into_raw())
        }
        _ => Image::new(height, width, 3, decoded.into_rgb8().into_raw()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::hash::xxh3;

    fn gradient(height: usize, width: usize, channels: usize) -> Image {
        let pixels = (0..height * width * channels).map(|i| (i / channels * 3 % 256) as u8).collect();
        Image::new(height, width, channels, pixels).unwrap()
    }

    #[test]
    fn png_is_lossless_and_jpeg_is_close() {
        for channels in [1, 3] {
            let image = gradient(9, 13, channels);
            assert_eq!(decode(&Codec::Png.encode(&image).unwrap()).unwrap(), image);
            let smooth = Image { pixels: vec![130; 9 * 13 * channels], ..image };
            let decoded = decode(&Codec::Jpeg(95).encode(&smooth).unwrap()).unwrap();
            assert_eq!(decoded.shape(), smooth.shape());
            assert!(decoded.pixels.iter().all(|&sample| sample.abs_diff(130) <= 2));
        }
    }

    /// If this fails after an update of a library, raise [`ENCODER_VERSION`] and put in what it printed.
    #[test]
    fn encoders_write_the_bits_of_their_version() {
        let noise = |channels| {
            let pixels = equipoise_base::rng::Key::new(1, "codec").stream();
            let pixels = (0..31 * 17 * channels).scan(pixels, |stream, _| Some(stream.below(256) as u8));
            Image::new(31, 17, channels, pixels.collect()).unwrap()
        };
        let mut bits = Vec::new();
        for codec in [Codec::Png, Codec::Jpeg(60), Codec::Jpeg(95)] {
            for image in [gradient(31, 17, 1), gradient(31, 17, 3), noise(1), noise(3)] {
                bits.extend_from_slice(&xxh3(&codec.encode(&image).unwrap()).to_le_bytes());
            }
        }
        assert_eq!((ENCODER_VERSION, format!("{:016x}", xxh3(&bits)).as_str()), (1, "2049e31e1ff59446"));
    }

    #[test]
    fn codec_names_round_trip() {
        for codec in [Codec::Raw, Codec::Png, Codec::Jpeg(1), Codec::Jpeg(100), Codec::Source] {
            assert_eq!(codec.to_string().parse::<Codec>().unwrap(), codec);
        }
        for name in ["", "jpeg", "jpeg:0", "jpeg:101", "jpeg:-1", "webp"] {
            assert!(name.parse::<Codec>().is_err(), "{name}");
        }
    }

    #[test]
    fn damaged_and_foreign_images_are_errors() {
        let png = encode_png(&gradient(9, 13, 3)).unwrap();
        for bytes in [&b""[..], b"text", b"GIF89a........", &png[..20], &png[..png.len() / 2]] {
            assert_eq!(decode(bytes).unwrap_err().code(), ExitCode::BadData);
        }
    }

    #[test]
    fn sides_beyond_the_limit_are_refused() {
        let line = |width| encode_png(&Image::new(1, width, 1, vec![0; width]).unwrap()).unwrap();
        assert!(decode(&line(MAX_SIDE as usize)).is_ok());
        assert!(decode(&line(MAX_SIDE as usize + 1)).is_err());
    }

    #[test]
    fn shapes_are_checked() {
        assert!(Image::new(2, 2, 3, vec![0; 12]).is_ok());
        assert!(Image::new(2, 2, 3, vec![0; 11]).is_err());
        assert!(Image::new(2, 2, 4, vec![0; 16]).is_err());
        assert!(Image::new(usize::MAX, 2, 3, vec![]).is_err());
    }
}
