//! Image folders: one folder per class, files inside it.

use crate::LabeledPath;
use equipoise_base::{Error, Result, bail};
use std::path::{Path, PathBuf};

/// What a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Class names: the folder names in byte order.
    pub classes: Vec<String>,
    /// Images by class, then by file name.
    pub images: Vec<LabeledPath>,
}

/// Lists `root/<class>/<image>`, with the same result on every file system.
///
/// Hidden entries and files that do not end in `.jpg`, `.jpeg` or `.png` are passed over. An empty class folder
/// is still a class.
///
/// # Errors
/// 74 when a folder cannot be listed, 65 when there is no class folder, no image, or a class name is not UTF-8.
pub fn scan(root: &Path) -> Result<Folder> {
    let mut dirs = list(root)?;
    dirs.retain(|path| path.is_dir());
    if dirs.is_empty() {
        bail!(BadData, "{}: no class folders (expected {0}/CLASS/IMAGE.jpg)", root.display());
    }
    let mut folder = Folder { classes: Vec::with_capacity(dirs.len()), images: Vec::new() };
    for (label, dir) in dirs.iter().enumerate() {
        let name = dir.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::data(format!("{}: class name is not UTF-8", dir.display())))?;
        folder.classes.push(name.to_owned());
        let files = list(dir)?.into_iter().filter(|path| is_image(path) && path.is_file());
        folder.images.extend(files.map(|path| LabeledPath { path, label: label as u32 }));
    }
    if folder.images.is_empty() {
        bail!(BadData, "{}: no .jpg, .jpeg or .png files in its class folders", root.display());
    }
    Ok(folder)
}

/// Entries that are not hidden, in byte order.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("list", dir, error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_files_in_byte_order() {
        let dir = tempfile::tempdir().unwrap();
        for (class, files) in [("b", vec!["2.PNG", "10.jpg", "notes.txt", ".3.jpg"]), ("a", vec!["x.jpeg"])] {
            std::fs::create_dir(dir.path().join(class)).unwrap();
            for file in files {
                std::fs::write(dir.path().join(class).join(file), "").unwrap();
            }
        }
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        std::fs::create_dir(dir.path().join(".cache")).unwrap();
        std::fs::write(dir.path().join("README.jpg"), "").unwrap();
        let folder = scan(dir.path()).unwrap();
        assert_eq!(folder.classes, ["a", "b", "empty"]);
        let found: Vec<_> =
            folder.images.iter().map(|image| (image.label, image.path.file_name().unwrap())).collect();
        assert_eq!(found, [(0, "x.jpeg".as_ref()), (1, "10.jpg".as_ref()), (1, "2.PNG".as_ref())]);
    }

    #[test]
    fn a_folder_without_classes_says_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        assert!(scan(dir.path()).unwrap_err().to_string().contains("CLASS/IMAGE.jpg"));
        assert!(scan(&dir.path().join("absent")).is_err());
    }
}
