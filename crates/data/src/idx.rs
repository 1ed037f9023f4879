//! MNIST's IDX format: big-endian magic (0, 0, type, dimensions), sizes, then unsigned bytes.

use crate::{ImageSet, gzip};
use equipoise_base::{Result, ResultExt as _, bail, ensure};
use std::path::Path;

/// Reads an image file and its label file, plain or `.gz`: gray images.
///
/// # Errors
/// 74 when a file cannot be read, 65 naming the file that is damaged or does not fit the other.
pub fn read(images: &Path, labels: &Path) -> Result<ImageSet> {
    let (image_sizes, pixels) = read_bytes(images, 3)?;
    let (label_sizes, bytes) = read_bytes(labels, 1)?;
    let (count, labelled) = (image_sizes[0], label_sizes[0]);
    if count != labelled {
        bail!(BadData, "{}: {count} images, but {labelled} labels in {}", images.display(), labels.display());
    }
    let labels = bytes.into_iter().map(u32::from).collect();
    ImageSet::new(image_sizes[1], image_sizes[2], 1, pixels, labels)
        .map_err(|error| error.context(images.display()))
}

/// Sizes and content of a file of unsigned bytes with this many dimensions.
fn read_bytes(path: &Path, dimensions: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let name = path.display();
    let mut bytes = gzip::read(path)?;
    let header = 4 + 4 * dimensions;
    let expected = [0, 0, 0x08, dimensions as u8];
    ensure!(
        bytes.len() >= header && bytes[..4] == expected,
        BadData,
        "{name}: not an IDX file of unsigned bytes with {dimensions} dimension(s)"
    );
    let mut sizes = Vec::with_capacity(dimensions);
    for field in bytes[4..header].chunks_exact(4) {
        let size = field.try_into().map(u32::from_be_bytes);
        sizes.push(size.or_exit(equipoise_base::ExitCode::BadData, &name)? as usize);
    }
    let content = bytes.len() - header;
    let promised = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    ensure!(
        promised == Some(content),
        BadData,
        "{name}: the header says {sizes:?}, but {content} bytes follow"
    );
    Ok((sizes, bytes.split_off(header)))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::io::Write;

    fn idx(sizes: &[u32], content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, sizes.len() as u8];
        bytes.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
        bytes.extend_from_slice(content);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_files(images: &[u8], labels: &[u8]) -> Result<ImageSet> {
        let dir = tempfile::tempdir().unwrap();
        let (image_file, label_file) = (dir.path().join("images.gz"), dir.path().join("labels"));
        std::fs::write(&image_file, images).unwrap();
        std::fs::write(&label_file, labels).unwrap();
        read(&image_file, &label_file)
    }

    #[test]
    fn plain_and_gzipped() {
        let set = read_files(&gz(&idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6])), &idx(&[2], &[7, 9])).unwrap();
        assert_eq!((set.height, set.width, set.channels), (1, 3, 1));
        assert_eq!((&set.pixels[..], &set.labels[..]), (&[1, 2, 3, 4, 5, 6][..], &[7, 9][..]));
    }

    #[test]
    fn damage_is_named() {
        let labels = idx(&[2], &[7, 9]);
        let images = gz(&idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]));
        let message = |images: &[u8], labels: &[u8]| read_files(images, labels).unwrap_err().to_string();
        assert!(message(&images[..images.len() - 9], &labels).contains("damaged gzip"));
        assert!(message(&gz(&idx(&[2, 1, 3], &[1])), &labels).contains("1 bytes follow"));
        assert!(message(&gz(&idx(&[u32::MAX; 3], &[1])), &labels).contains("1 bytes follow"));
        assert!(message(&images, &idx(&[1], &[7])).contains("2 images, but 1 labels"));
        assert!(message(&images, b"text").contains("not an IDX file"));
        assert!(message(&gz(&[]), &labels).contains("not an IDX file"));
        assert!(message(&gz(&idx(&[2, 0, 3], &[])), &labels).contains("0 bytes"));
    }

    #[test]
    fn other_compressions_say_what_to_do() {
        let error = read(Path::new("images.xz"), Path::new("labels")).unwrap_err().to_string();
        assert!(error.contains("xz -dk images.xz"), "{error}");
    }
}
