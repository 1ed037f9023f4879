//! Image files named by a list or a folder, decoded to one working size.

use crate::decode::{Limits, decode};
use crate::resample::Filter;
use crate::resize::resize_and_crop;
use crate::{Image, ImageRef, ImageSet, ImageSource};
use equipoise_base::{Error, Result, bail};
use equipoise_catalog::LabeledPath;
use equipoise_catalog::webdataset::Member;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How files become images of one size: shorter side to `size`, then the middle `size` x `size`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilesConfig {
    /// Side of the square working size.
    pub size: usize,
    /// 1 (gray) or 3 (RGB).
    pub channels: usize,
    /// Resampling filter.
    pub filter: Filter,
    /// What a decoder may use.
    pub limits: Limits,
    /// What happens to files that are no images.
    pub bad_images: BadImages,
}

impl Default for FilesConfig {
    fn default() -> Self {
        Self {
            size: 224,
            channels: 3,
            filter: Filter::Bilinear,
            limits: Limits::default(),
            bad_images: BadImages::default(),
        }
    }
}

/// Bad images are left out and reported; too many stop the stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BadImages {
    /// Largest part of the files that may be bad.
    pub max_fraction: f64,
}

impl Default for BadImages {
    fn default() -> Self {
        Self { max_fraction: 0.001 }
    }
}

/// A file that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadImage {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Images read from files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The good images, in list order.
    pub images: ImageSet,
    /// Position in the list of each good image.
    pub positions: Vec<usize>,
    /// The others.
    pub bad: Vec<BadImage>,
}

/// Reads and decodes files in the current rayon pool; the result does not depend on its size.
///
/// # Errors
/// 74 when a file cannot be opened or read, 65 when more files are bad than the policy allows, 78 for a size of 0.
pub fn read_files(list: &[LabeledPath], config: &FilesConfig) -> Result<Files> {
    decode_all(list, config)
}

/// [`read_files`] for images in webdataset archives.
///
/// # Errors
/// As [`read_files`].
pub fn read_members(list: &[Member], config: &FilesConfig) -> Result<Files> {
    decode_all(list, config)
}

/// The encoded bytes of an image, wherever they lie, and its class.
trait Encoded: Sync {
    fn label(&self) -> u32;
    fn read(&self) -> Result<Vec<u8>>;
    /// What messages call it.
    fn path(&self) -> PathBuf;
}

impl Encoded for LabeledPath {
    fn label(&self) -> u32 {
        self.label
    }

    fn read(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).map_err(|error| Error::io("read", &self.path, error))
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }
}

impl Encoded for Member {
    fn label(&self) -> u32 {
        self.label
    }

    fn read(&self) -> Result<Vec<u8>> {
        self.read()
    }

    fn path(&self) -> PathBuf {
        self.path()
    }
}

fn decode_all(list: &[impl Encoded], config: &FilesConfig) -> Result<Files> {
    let FilesConfig { size, channels, .. } = *config;
    if size == 0 || !matches!(channels, 1 | 3) {
        bail!(Config, "size {size} with {channels} channels: the size must be positive, channels 1 or 3");
    }
    let mut files = Files::default();
    let (mut pixels, mut labels) = (Vec::with_capacity(list.len() * size * size * channels), Vec::new());
    // A chunk at a time: the decoded images wait beside the set, and neither should be held twice.
    for (chunk, entries) in list.chunks(CHUNK).enumerate() {
        let decoded: Vec<Decoded> =
            entries.par_iter().map(|entry| read_file(entry, config)).collect::<Result<_>>()?;
        for (offset, outcome) in decoded.into_iter().enumerate() {
            match outcome {
                Ok(image) => {
                    pixels.extend_from_slice(&image.pixels);
                    labels.push(entries[offset].label());
                    files.positions.push(chunk * CHUNK + offset);
                }
                Err(bad) => files.bad.push(bad),
            }
        }
        check(&files.bad, list.len(), config.bad_images)?;
    }
    files.images = ImageSet::new(size, size, channels, pixels, labels)?;
    Ok(files)
}

/// Files decoded before their pixels move on.
const CHUNK: usize = 1024;

/// An image, or why there is none.
type Decoded = std::result::Result<Image, BadImage>;

/// The outer error ends the stage, the inner one leaves the file out.
fn read_file(entry: &impl Encoded, config: &FilesConfig) -> Result<Decoded> {
    let bytes = entry.read()?;
    let image = decode(&bytes, config.channels, &config.limits);
    let resized = image.map(|image| resize_and_crop(image.view(), config.size, config.filter));
    Ok(resized.map_err(|error| BadImage { path: entry.path(), reason: error.message().to_owned() }))
}

/// Files decoded anew at each visit, at their full size: for sets that do not fit into memory.
///
/// A bad file is an error here; `prepare` finds bad files before training.
#[derive(Clone, Debug)]
pub struct FileSource {
    /// The files.
    pub list: Vec<LabeledPath>,
    /// 1 (gray) or 3 (RGB).
    pub channels: usize,
    /// What a decoder may use.
    pub limits: Limits,
}

impl ImageSource for FileSource {
    fn len(&self) -> usize {
        self.list.len()
    }

    fn label(&self, index: usize) -> u32 {
        self.list[index].label
    }

    fn with_image(&self, index: usize, with: &mut dyn FnMut(ImageRef<'_>)) -> Result<()> {
        let files = self.list.len();
        let Some(LabeledPath { path, .. }) = self.list.get(index) else {
            bail!(BadData, "image {index} of a list of {files} does not exist");
        };
        let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
        let image = decode(&bytes, self.channels, &self.limits);
        with(image.map_err(|error| error.context(path.display()))?.view());
        Ok(())
    }
}

fn check(bad: &[BadImage], files: usize, policy: BadImages) -> Result<()> {
    let allowed = (policy.max_fraction * files as f64).floor();
    if bad.len() as f64 <= allowed {
        return Ok(());
    }
    let named: Vec<String> =
        bad.iter().take(3).map(|bad| format!("{}: {}", bad.path.display(), bad.reason)).collect();
    bail!(
        BadData,
        "{} of {files} image files are bad, {allowed} are allowed (data.max_bad = {}): {}",
        bad.len(),
        policy.max_fraction,
        named.join("; ")
    );
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::decode::tests::{jpeg, png};
    use image::ExtendedColorType;

    fn folder(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Vec<LabeledPath>) {
        let dir = tempfile::tempdir().unwrap();
        let list = files
            .iter()
            .enumerate()
            .map(|(label, (name, bytes))| {
                let path = dir.path().join(name);
                std::fs::write(&path, bytes).unwrap();
                LabeledPath { path, label: label as u32 }
            })
            .collect();
        (dir, list)
    }

    fn config(max_fraction: f64) -> FilesConfig {
        FilesConfig { size: 4, bad_images: BadImages { max_fraction }, ..FilesConfig::default() }
    }

    #[test]
    fn bad_files_are_left_out_and_named() {
        let (_dir, list) = folder(&[
            ("good.png", png(&[7; 3], 1, 1, ExtendedColorType::Rgb8)),
            ("text.jpg", b"hello".to_vec()),
            ("empty.jpg", Vec::new()),
            ("good.jpg", jpeg(&[200; 6 * 5 * 3], 6, 5)),
        ]);
        let files = read_files(&list, &config(0.5)).unwrap();
        assert_eq!((&files.images.labels[..], &files.positions[..]), (&[0, 3][..], &[0, 3][..]));
        assert_eq!(files.images.pixels.len(), 2 * 4 * 4 * 3);
        let reasons: Vec<&str> = files.bad.iter().map(|bad| bad.reason.as_str()).collect();
        assert_eq!(reasons, ["neither JPEG nor PNG", "the file is empty"]);

        let error = read_files(&list, &config(0.49)).unwrap_err().to_string();
        assert!(error.contains("2 of 4") && error.contains("text.jpg: neither"), "{error}");
    }

    #[test]
    fn a_missing_file_is_an_io_error() {
        let list = [LabeledPath { path: "absent.jpg".into(), label: 0 }];
        assert_eq!(read_files(&list, &config(1.0)).unwrap_err().code(), equipoise_base::ExitCode::Io);
    }

    #[test]
    fn threads_do_not_matter() {
        let many: Vec<(String, Vec<u8>)> =
            (0..20u8).map(|i| (format!("{i}.png"), png(&[i; 3], 1, 1, ExtendedColorType::Rgb8))).collect();
        let many: Vec<(&str, Vec<u8>)> =
            many.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let (_dir, list) = folder(&many);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| read_files(&list, &config(0.0))).unwrap()
        };
        assert_eq!(with(1), with(3));
    }
}
