//! CIFAR's binary records: label byte(s), then the red, green and blue planes of a 32 x 32 image.

use crate::{ImageSet, gzip};
use equipoise_base::{Result, ensure};
use std::path::PathBuf;

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

/// Which of the two record formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// One label byte.
    Cifar10,
    /// A coarse and a fine label byte; the fine one is used.
    Cifar100,
}

impl Records {
    fn label_bytes(self) -> usize {
        match self {
            Self::Cifar10 => 1,
            Self::Cifar100 => 2,
        }
    }

    fn classes(self) -> u8 {
        match self {
            Self::Cifar10 => 10,
            Self::Cifar100 => 100,
        }
    }
}

/// Reads batch files, plain or `.gz`, one after the other: RGB images.
///
/// # Errors
/// 74 when a file cannot be read, 65 naming the file that is damaged or of the other format.
pub fn read(files: &[PathBuf], records: Records) -> Result<ImageSet> {
    ensure!(!files.is_empty(), Config, "a CIFAR source needs at least one file");
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let size = records.label_bytes() + 3 * PLANE;
    for path in files {
        let name = path.display();
        let bytes = gzip::read(path)?;
        let length = bytes.len();
        let whole = length > 0 && length.is_multiple_of(size);
        ensure!(whole, BadData, "{name}: {length} bytes are not whole {records:?} records of {size} bytes");
        pixels.reserve(length);
        for (index, record) in bytes.chunks_exact(size).enumerate() {
            let (label, planes) = record.split_at(records.label_bytes());
            let label = label[label.len() - 1];
            ensure!(label < records.classes(), BadData, "{name}: record {index} has label {label}");
            labels.push(label.into());
            pixels.extend((0..PLANE).flat_map(|p| [planes[p], planes[PLANE + p], planes[2 * PLANE + p]]));
        }
    }
    ImageSet::new(SIDE, SIDE, 3, pixels, labels)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn record(labels: &[u8]) -> Vec<u8> {
        let planes = [[1u8; PLANE], [2; PLANE], [3; PLANE]].concat();
        [labels, &planes[..]].concat()
    }

    fn read_files(contents: &[Vec<u8>], records: Records) -> Result<ImageSet> {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (0..contents.len()).map(|file| dir.path().join(file.to_string())).collect();
        for (file, content) in files.iter().zip(contents) {
            std::fs::write(file, content).unwrap();
        }
        read(&files, records)
    }

    #[test]
    fn planes_become_pixels() {
        let set = read_files(&[record(&[4]), record(&[9])], Records::Cifar10).unwrap();
        assert_eq!((set.labels, &set.pixels[..6]), (vec![4, 9], &[1, 2, 3, 1, 2, 3][..]));
        let fine = read_files(&[record(&[4, 99])], Records::Cifar100).unwrap();
        assert_eq!(fine.labels, [99]);
    }

    #[test]
    fn damage_is_named() {
        let message = |content: Vec<u8>| read_files(&[content], Records::Cifar10).unwrap_err().to_string();
        assert!(message(record(&[1])[1..].to_vec()).contains("not whole Cifar10 records"));
        assert!(message(Vec::new()).contains("0 bytes"));
        assert!(message(record(&[10])).contains("record 0 has label 10"));
    }
}
