//! Images per class: counted from labels, or read where a train list may not be published.

use crate::text;
use equipoise_base::{Error, Result, ResultExt, bail};
use std::path::Path;

/// Images per class.
///
/// # Errors
/// 65 when a label is not below `classes`.
pub fn of_labels(labels: &[u32], classes: usize) -> Result<Vec<u64>> {
    let mut counts = vec![0; classes];
    for (index, &label) in labels.iter().enumerate() {
        match counts.get_mut(label as usize) {
            Some(count) => *count += 1,
            None => bail!(BadData, "image {index} has label {label}, but there are {classes} classes"),
        }
    }
    Ok(counts)
}

/// Reads counts, class 0 first: a JSON array, or text with one number per line.
///
/// # Errors
/// 74 when the file cannot be read, 65 when it holds something else.
pub fn read(file: &Path) -> Result<Vec<u64>> {
    let text = text::read(file)?;
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(&text).or_exit(equipoise_base::ExitCode::BadData, file.display());
    }
    let number = |(line, text): (usize, &str)| {
        text.parse().map_err(|_| Error::data(format!("{}:{line}: '{text}' is not a count", file.display())))
    };
    text::lines(&text).map(number).collect()
}

/// Indices of each class, in file order.
///
/// # Errors
/// 65 when a label is not below `classes`.
pub fn members(labels: &[u32], classes: usize) -> Result<Vec<Vec<usize>>> {
    let mut members: Vec<Vec<usize>> =
        of_labels(labels, classes)?.iter().map(|&count| Vec::with_capacity(count as usize)).collect();
    for (index, &label) in labels.iter().enumerate() {
        members[label as usize].push(index);
    }
    Ok(members)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::ShotGroup;

    #[test]
    fn a_label_beyond_the_classes_is_bad_data() {
        assert_eq!(of_labels(&[0, 2, 2], 3).unwrap(), [1, 0, 2]);
        assert!(of_labels(&[0, 3], 3).unwrap_err().to_string().contains("image 1 has label 3"));
        assert_eq!(members(&[1, 0, 1], 2).unwrap(), [vec![1], vec![0, 2]]);
    }

    #[test]
    fn text_and_json() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("counts");
        std::fs::write(&file, "# two classes\n5\n7\n").unwrap();
        assert_eq!(read(&file).unwrap(), [5, 7]);
        std::fs::write(&file, "[5, 7]").unwrap();
        assert_eq!(read(&file).unwrap(), [5, 7]);
        std::fs::write(&file, "5\nmany\n").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains(":2: 'many'"));
    }

    /// The committed counts are those of the papers: 115,846 images, 385/479/136 classes.
    #[test]
    fn imagenet_lt() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/classes/imagenet-lt-counts.txt");
        let counts = read(&file).unwrap();
        assert_eq!((counts.len(), counts.iter().sum::<u64>()), (1000, 115_846));
        assert_eq!((counts.iter().min(), counts.iter().max()), (Some(&5), Some(&1280)));
        let size = |group| counts.iter().filter(|&&count| ShotGroup::of(count) == group).count();
        assert_eq!(ShotGroup::ALL.map(size), [385, 479, 136]);
    }
}
