//! Where the images of a split come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Files of one split, by format. Relative paths start at `data.root`: see [`Source::under`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// MNIST's format, plain or `.gz`.
    Idx {
        /// Images, unsigned bytes, `[n, h, w]`.
        images: PathBuf,
        /// Labels, unsigned bytes, `[n]`.
        labels: PathBuf,
    },
    /// CIFAR-10 binary records, plain or `.gz`, read one after the other.
    Cifar10 {
        /// Batch files.
        files: Vec<PathBuf>,
    },
    /// CIFAR-100 binary records with their fine labels, plain or `.gz`.
    Cifar100 {
        /// Batch files.
        files: Vec<PathBuf>,
    },
    /// A folder of class folders with JPEG or PNG files; classes and files are sorted by name.
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// Archives of the webdataset library: samples with a JPEG or PNG file and a `.cls` file.
    Webdataset {
        /// A tar file, or a folder of them, which are then read in the order of their names.
        path: PathBuf,
    },
    /// A text file of `path label` lines, as ImageNet-LT.
    List {
        /// The list.
        file: PathBuf,
        /// Where its paths start.
        root: PathBuf,
    },
    /// A text file of `path label context` lines: classes in contexts, such as NICO++. Contexts are numbers, too.
    GroupList {
        /// The list.
        file: PathBuf,
        /// Where its paths start.
        root: PathBuf,
    },
    /// One split of a metadata file as SubpopBench writes it for NICO++, Waterbirds and CelebA: CSV with the columns
    /// filename, y (class), a (context) and split.
    Metadata {
        /// The CSV file.
        file: PathBuf,
        /// Where its paths start, if they are not absolute.
        root: PathBuf,
        /// 0 for training, 1 for validation, 2 for test.
        split: u32,
    },
}

impl Source {
    /// The source with its relative paths starting at `root`.
    #[must_use]
    pub fn under(self, root: &Path) -> Self {
        let place = |path: PathBuf| root.join(path);
        match self {
            Self::Idx { images, labels } => Self::Idx { images: place(images), labels: place(labels) },
            Self::Cifar10 { files } => Self::Cifar10 { files: files.into_iter().map(place).collect() },
            Self::Cifar100 { files } => Self::Cifar100 { files: files.into_iter().map(place).collect() },
            Self::Folder { path } => Self::Folder { path: place(path) },
            Self::Webdataset { path } => Self::Webdataset { path: place(path) },
            Self::List { file, root: images } => Self::List { file: place(file), root: place(images) },
            Self::GroupList { file, root: images } => {
                Self::GroupList { file: place(file), root: place(images) }
            }
            Self::Metadata { file, root: images, split } => {
                Self::Metadata { file: place(file), root: place(images), split }
            }
        }
    }

    /// The files and folders named, for checks before a run and for messages.
    pub fn paths(&self) -> Vec<&PathBuf> {
        match self {
            Self::Idx { images, labels } => vec![images, labels],
            Self::Cifar10 { files } | Self::Cifar100 { files } => files.iter().collect(),
            Self::Folder { path } | Self::Webdataset { path } => vec![path],
            Self::List { file, root }
            | Self::GroupList { file, root }
            | Self::Metadata { file, root, .. } => vec![file, root],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_tagged_and_strict() {
        let parse = |text: &str| serde_json::from_str::<Source>(text);
        let folder = parse(r#"{"format": "folder", "path": "photos"}"#).unwrap();
        assert_eq!(folder, Source::Folder { path: "photos".into() });
        assert!(parse(r#"{"format": "folder", "path": "photos", "root": "."}"#).is_err());
        assert!(parse(r#"{"format": "zip", "path": "photos"}"#).is_err());
    }
}
