//! Run directories that live as long as a test, and longer if it fails.

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory of its own for one test; kept, and named on stderr, if the test panics.
#[derive(Debug)]
pub struct TempRun(Option<TempDir>);

impl Default for TempRun {
    /// # Panics
    /// If the temporary folder is not writable.
    fn default() -> Self {
        let made = tempfile::Builder::new().prefix("equipoise-run-").tempdir();
        Self(Some(made.unwrap_or_else(|error| panic!("no temporary directory: {error}"))))
    }
}

impl TempRun {
    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// A path below it.
    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path().join(relative)
    }

    /// Writes a file below it, folders included, and returns its path.
    ///
    /// # Panics
    /// If it cannot be written.
    #[allow(clippy::disallowed_methods)]
    pub fn write(&self, relative: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(relative);
        let folder = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, contents))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Relative paths and contents of all files, sorted: two runs are equal if these are.
    ///
    /// # Panics
    /// If something cannot be read.
    pub fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = vec![];
        collect(self.path(), self.path(), &mut files);
        files.sort();
        files
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    let fail = |error: std::io::Error| -> ! { panic!("{}: {error}", folder.display()) };
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| fail(error)) {
        let path = entry.unwrap_or_else(|error| fail(error)).path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let contents = std::fs::read(&path).unwrap_or_else(|error| fail(error));
            files.push((path.strip_prefix(root).unwrap_or(&path).to_path_buf(), contents));
        }
    }
}

impl Drop for TempRun {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take().filter(|_| std::thread::panicking()) {
            eprintln!("kept for inspection: {}", folder.keep().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_files_make_equal_runs() {
        let (a, b) = (TempRun::default(), TempRun::default());
        for run in [&a, &b] {
            run.write("stages/f/outcome.json", "{}");
        }
        assert_eq!(a.contents(), b.contents());
        b.write("stages/f/outcome.json", "[]");
        assert_ne!(a.contents(), b.contents());
        let path = a.path().to_path_buf();
        drop(a);
        assert!(!path.exists());
    }
}
