//! Split lists (`path label` per line) and class-name lists (one name per line).

use crate::{Grouped, text};
use equipoise_base::{Error, Result, bail};
use std::path::{Path, PathBuf};

/// An image file and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabeledPath {
    /// The file.
    pub path: PathBuf,
    /// Class, from 0.
    pub label: u32,
}

/// Reads a list in the format of ImageNet-LT: a path, blanks, a label. Paths may hold blanks and start at `root`.
///
/// A leading `/`, as in the lists of Places-365, still means `root`.
///
/// # Errors
/// 74 when the file cannot be read, 65 naming the line when it is not a list.
pub fn read(file: &Path, root: &Path) -> Result<Vec<LabeledPath>> {
    let text = text::read(file)?;
    let mut entries = Vec::new();
    for (number, line) in text::lines(&text) {
        let (path, label) = path_and_label(line)
            .ok_or_else(|| Error::data(format!("{}:{number}: expected 'PATH LABEL'", file.display())))?;
        entries.push(LabeledPath { path: root.join(path.trim_start_matches('/')), label });
    }
    if entries.is_empty() {
        bail!(BadData, "{}: the list is empty", file.display());
    }
    Ok(entries)
}

/// Reads a list whose lines have a context behind the label: `path label context`. Otherwise as [`read`].
///
/// # Errors
/// As [`read`].
pub fn read_grouped(file: &Path, root: &Path) -> Result<Grouped> {
    let text = text::read(file)?;
    let mut grouped = Grouped::default();
    for (number, line) in text::lines(&text) {
        let parts = path_and_label(line).and_then(|(rest, context)| Some((path_and_label(rest)?, context)));
        let ((path, label), context) = parts.ok_or_else(|| {
            Error::data(format!("{}:{number}: expected 'PATH LABEL CONTEXT'", file.display()))
        })?;
        grouped.files.push(LabeledPath { path: root.join(path.trim_start_matches('/')), label });
        grouped.contexts.push(context);
    }
    if grouped.files.is_empty() {
        bail!(BadData, "{}: the list is empty", file.display());
    }
    Ok(grouped)
}

fn path_and_label(line: &str) -> Option<(&str, u32)> {
    let (path, label) = line.rsplit_once(char::is_whitespace)?;
    let path = path.trim_end();
    (!path.is_empty()).then_some((path, label.parse().ok()?))
}

/// Reads class names, one per line, class 0 first. Blank lines and `#` comments are skipped.
///
/// # Errors
/// 74 when the file cannot be read, 65 when a name occurs twice or there is none.
pub fn read_class_names(file: &Path) -> Result<Vec<String>> {
    let text = text::read(file)?;
    let mut seen = std::collections::BTreeMap::new();
    let mut names = Vec::new();
    for (number, line) in text::lines(&text) {
        if let Some(first) = seen.insert(line, number) {
            bail!(BadData, "{}:{number}: class '{line}' is already on line {first}", file.display());
        }
        names.push(line.to_owned());
    }
    if names.is_empty() {
        bail!(BadData, "{}: no class names", file.display());
    }
    Ok(names)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list.txt");
        std::fs::write(&file, text).unwrap();
        (dir, file)
    }

    #[test]
    fn paths_with_blanks_and_leading_slashes() {
        let (_dir, file) = write("# train\ntrain/a b.JPEG 0\n\n/a/airfield/1.jpg\t12\r\n");
        let entries = read(&file, Path::new("/data")).unwrap();
        assert_eq!(entries[0], LabeledPath { path: "/data/train/a b.JPEG".into(), label: 0 });
        assert_eq!(entries[1], LabeledPath { path: "/data/a/airfield/1.jpg".into(), label: 12 });
    }

    #[test]
    fn a_bad_line_is_named() {
        for text in ["a.jpg 0\nb.jpg\n", "a.jpg 0\nb.jpg -1\n", "a.jpg 0\nb.jpg x\n"] {
            let (_dir, file) = write(text);
            let error = read(&file, Path::new(".")).unwrap_err().to_string();
            assert!(error.contains("list.txt:2:"), "{error}");
        }
        let (_dir, file) = write("\n");
        assert!(read(&file, Path::new(".")).is_err());
    }

    #[test]
    fn contexts_stand_behind_labels() {
        let (_dir, file) = write("cat/a b 1.jpg 0 2\n/dog/c.jpg\t1 0\n");
        let grouped = read_grouped(&file, Path::new("/data")).unwrap();
        assert_eq!(grouped.files[0], LabeledPath { path: "/data/cat/a b 1.jpg".into(), label: 0 });
        assert_eq!((grouped.files[1].label, &grouped.contexts[..]), (1, &[2, 0][..]));
        let (_dir, file) = write("cat/a.jpg 0 1\ncat/b.jpg 0\n");
        let error = read_grouped(&file, Path::new(".")).unwrap_err().to_string();
        assert!(error.contains("list.txt:2: expected 'PATH LABEL CONTEXT'"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_text_are_bad_data() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list.txt");
        std::fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
        assert_eq!(read(&file, Path::new(".")).unwrap_err().code(), equipoise_base::ExitCode::BadData);
    }

    #[test]
    fn class_names() {
        let (_dir, file) = write("T-shirt/top\nTrouser\n");
        assert_eq!(read_class_names(&file).unwrap(), ["T-shirt/top", "Trouser"]);
        let (_dir, file) = write("cat\ndog\ncat\n");
        assert!(read_class_names(&file).unwrap_err().to_string().contains("already on line 1"));
    }
}
