//! One door for every source: from a [`Source`] to images in memory.

use crate::files::{BadImage, Files, FilesConfig, read_files, read_members};
use crate::{ImageSet, cifar, idx};
use equipoise_base::Result;
use equipoise_catalog::{Grouped, Source, counts, folder, list, webdataset};

/// How a source is read. IDX and CIFAR images keep their own size and channels.
pub type ReadConfig = FilesConfig;

/// A split, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// The images.
    pub images: ImageSet,
    /// Position of each image in its source: in the list, the folder listing or the file.
    pub positions: Vec<usize>,
    /// Class names, where the source has any.
    pub classes: Option<Vec<String>>,
    /// Files left out.
    pub bad: Vec<BadImage>,
}

/// Reads a whole split. Files are decoded in the current rayon pool.
///
/// # Errors
/// 74 and 65 as the readers say; 65 when a label is not below `classes`.
pub fn read(source: &Source, config: &ReadConfig, classes: usize) -> Result<Split> {
    read_some(source, config, classes, usize::MAX)
}

/// [`read`] of about `most` images all over the split, where they are files of their own: to learn what one costs.
///
/// # Errors
/// As [`read`].
pub fn read_some(source: &Source, config: &ReadConfig, classes: usize, most: usize) -> Result<Split> {
    let split = match source {
        Source::Idx { images, labels } => whole(idx::read(images, labels)?),
        Source::Cifar10 { files } => whole(cifar::read(files, cifar::Records::Cifar10)?),
        Source::Cifar100 { files } => whole(cifar::read(files, cifar::Records::Cifar100)?),
        Source::Folder { path } => {
            let found = folder::scan(path)?;
            let files = read_files(&spread(found.images, most), config)?;
            Split { classes: Some(found.classes), ..decoded(files) }
        }
        Source::Webdataset { path } => decoded(read_members(&spread(webdataset::scan(path)?, most), config)?),
        Source::List { file, root } => decoded(read_files(&spread(list::read(file, root)?, most), config)?),
        Source::GroupList { .. } | Source::Metadata { .. } => {
            let files = Grouped::read(source)?.unwrap_or_default().files;
            decoded(read_files(&spread(files, most), config)?)
        }
    };
    let named = source.paths().first().map(|path| path.display().to_string()).unwrap_or_default();
    counts::of_labels(&split.images.labels, classes).map_err(|error| error.context(named))?;
    Ok(split)
}

/// About `most` of all, evenly spread.
fn spread<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let every = all.len().div_ceil(most.max(1)).max(1);
    all.into_iter().step_by(every).collect()
}

fn whole(images: ImageSet) -> Split {
    Split { positions: (0..images.labels.len()).collect(), images, ..Split::default() }
}

fn decoded(files: Files) -> Split {
    Split { images: files.images, positions: files.positions, classes: None, bad: files.bad }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::decode::tests::png;
    use image::ExtendedColorType;
    use std::path::Path;

    #[test]
    fn folder_and_list_agree() {
        let dir = tempfile::tempdir().unwrap();
        for (class, value) in [("a", 1u8), ("b", 2)] {
            std::fs::create_dir(dir.path().join(class)).unwrap();
            let bytes = png(&[value; 3], 1, 1, ExtendedColorType::Rgb8);
            std::fs::write(dir.path().join(class).join("x.png"), bytes).unwrap();
        }
        let file = dir.path().join("list.txt");
        std::fs::write(&file, "a/x.png 0\nb/x.png 1\n").unwrap();
        let config = ReadConfig { size: 2, ..ReadConfig::default() };
        let folder = read(&Source::Folder { path: dir.path().into() }, &config, 2).unwrap();
        let list = Source::List { file, root: dir.path().into() };
        assert_eq!(folder.images, read(&list, &config, 2).unwrap().images);
        assert_eq!(folder.classes.unwrap(), ["a", "b"]);
        let some = read_some(&list, &config, 2, 1).unwrap();
        assert_eq!((some.images.labels, some.positions), (vec![0], vec![0]));
        assert!(read(&list, &config, 1).unwrap_err().to_string().contains("image 1 has label 1"));
    }

    /// The committed Fashion-MNIST-LT: the counts that its README lists.
    #[test]
    fn fashion_mnist_lt() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/data/fashion-mnist-lt");
        let class_counts = |split: &str| {
            let file = |part: &str| dir.join(format!("{split}-{part}.idx.gz"));
            let source = Source::Idx { images: file("images"), labels: file("labels") };
            let split = read(&source, &ReadConfig::default(), 10).unwrap();
            assert_eq!((split.images.height, split.images.width, split.images.channels), (28, 28, 1));
            counts::of_labels(&split.images.labels, 10).unwrap()
        };
        let train = class_counts("train");
        assert_eq!(train, [92, 1198, 33, 154, 55, 430, 20, 258, 718, 2000]);
        let extra = class_counts("extra");
        assert!(train.iter().zip(&extra).all(|(&real, &extra)| extra == 400u64.saturating_sub(real)));
        assert_eq!((class_counts("val"), class_counts("test")), (vec![200; 10], vec![1000; 10]));
    }
}
