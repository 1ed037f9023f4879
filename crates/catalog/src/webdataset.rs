//! Archives as the webdataset library writes them: tar files in which the files of a sample share a name up to its first
//! dot and follow each other. Of each sample its image (`.jpg`, `.jpeg`, `.png`) and its class (`.cls`, a number in text)
//! are taken; other files are passed over.

use equipoise_base::{Error, ExitCode, Result, ResultExt as _, bail, ensure};
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

/// An image in an archive, and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The archive.
    pub archive: PathBuf,
    /// Name within the archive.
    pub name: String,
    /// Where its bytes begin.
    pub offset: u64,
    /// How many they are.
    pub len: u64,
    /// Class, from 0.
    pub label: u32,
}

impl Member {
    /// The image's file, as it is in the archive.
    ///
    /// # Errors
    /// 74 when it cannot be read.
    pub fn read(&self) -> Result<Vec<u8>> {
        use std::os::unix::fs::FileExt as _;
        let failed = |error| Error::io("read", &self.archive, error);
        let mut bytes = vec![0; self.len as usize];
        File::open(&self.archive)
            .and_then(|file| file.read_exact_at(&mut bytes, self.offset))
            .map_err(failed)?;
        Ok(bytes)
    }

    /// What messages call it: `archive.tar/name.png`.
    pub fn path(&self) -> PathBuf {
        self.archive.join(&self.name)
    }
}

/// Lists the images of one archive, or of all `*.tar` of a folder in byte order. Reads headers and labels only.
///
/// # Errors
/// 74 when something cannot be read, 65 naming the archive and the sample that is incomplete.
pub fn scan(path: &Path) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for archive in archives(path)? {
        scan_archive(&archive, &mut members)?;
    }
    ensure!(!members.is_empty(), BadData, "{}: no image in its archives", path.display());
    Ok(members)
}

fn archives(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let failed = |error| Error::io("list", path, error);
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(path).map_err(failed)?.collect();
    let mut archives: Vec<PathBuf> = entries.map_err(failed)?.iter().map(std::fs::DirEntry::path).collect();
    archives.retain(|file| file.extension().is_some_and(|extension| extension == "tar"));
    archives.sort();
    ensure!(!archives.is_empty(), BadData, "{}: no .tar files", path.display());
    Ok(archives)
}

/// The files of one sample found so far.
#[derive(Default)]
struct Sample {
    key: String,
    image: Option<(String, u64, u64)>,
    label: Option<u32>,
}

impl Sample {
    fn finish(self, archive: &Path, members: &mut Vec<Member>) -> Result<()> {
        let named = || format!("{}: sample '{}'", archive.display(), self.key);
        match (self.image, self.label) {
            (Some((name, offset, len)), Some(label)) => {
                members.push(Member { archive: archive.to_path_buf(), name, offset, len, label });
                Ok(())
            }
            // Files that are no sample, such as a README.
            (None, None) => Ok(()),
            (None, Some(_)) => bail!(BadData, "{} has a .cls file and no .jpg or .png", named()),
            (Some(_), None) => bail!(BadData, "{} has an image and no .cls file", named()),
        }
    }
}

fn scan_archive(path: &Path, members: &mut Vec<Member>) -> Result<()> {
    let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
    let size = file.metadata().map_err(|error| Error::io("read", path, error))?.len();
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut sample = Sample::default();
    let named = format!("{}: damaged archive", path.display());
    for entry in archive.entries().or_exit(ExitCode::BadData, &named)? {
        let mut entry = entry.or_exit(ExitCode::BadData, &named)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((key, extension)) = key_and_extension(&name) else { continue };
        if key != sample.key {
            std::mem::take(&mut sample).finish(path, members)?;
            sample.key = key.to_string();
        }
        match extension.to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" | "png" => {
                ensure!(sample.image.is_none(), BadData, "{}: sample '{key}' has two images", path.display());
                let (offset, len) = (entry.raw_file_position(), entry.size());
                let whole = offset.checked_add(len).is_some_and(|end| end <= size);
                ensure!(whole, BadData, "{}: cut off within '{name}'", path.display());
                sample.image = Some((name, offset, len));
            }
            "cls" => {
                let mut text = String::new();
                let read = entry.by_ref().take(32).read_to_string(&mut text);
                let label = read.ok().and_then(|_| text.trim().parse().ok());
                let label = label.ok_or_else(|| {
                    Error::data(format!(
                        "{}: '{name}' holds {text:?}, not the number of a class",
                        path.display()
                    ))
                })?;
                sample.label = Some(label);
            }
            _ => {}
        }
    }
    sample.finish(path, members)
}

/// As webdataset splits names: the key ends at the first dot of the last part of the path.
fn key_and_extension(name: &str) -> Option<(&str, &str)> {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = last + name[last..].find('.')?;
    (dot > last).then(|| (&name[..dot], &name[dot + 1..]))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn scan_bytes(bytes: &[u8]) -> Result<Vec<Member>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, bytes).unwrap();
        let members = scan(&path)?;
        // Read while the folder is there.
        members.iter().for_each(|member| assert_eq!(member.read().unwrap().len() as u64, member.len));
        Ok(members)
    }

    #[test]
    fn samples_are_read_in_order_from_all_archives() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{}/1.png", "deep".repeat(40));
        let first = archive(&[
            ("README", b"x"),
            ("s.1.cls", b"of key 's' with extension '1.cls'"),
            ("b/7.PNG", b"image"),
            ("b/7.cls", b" 3\n"),
            ("b/7.json", b"{}"),
        ]);
        let second = archive(&[(&format!("{}.cls", &long[..long.len() - 4]), b"12"), (&long, b"0123456789")]);
        std::fs::write(dir.path().join("b.tar"), second).unwrap();
        std::fs::write(dir.path().join("a.tar"), first).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "").unwrap();
        let members = scan(dir.path()).unwrap();
        assert_eq!(members.iter().map(|member| member.label).collect::<Vec<_>>(), [3, 12]);
        assert_eq!(members[0].read().unwrap(), b"image");
        assert_eq!(members[1].read().unwrap(), b"0123456789");
        assert_eq!(members[0].path(), dir.path().join("a.tar/b/7.PNG"));
    }

    #[test]
    fn incomplete_samples_are_named() {
        let error = |files: &[(&str, &[u8])]| scan_bytes(&archive(files)).unwrap_err().to_string();
        assert!(error(&[("1.png", b"x")]).contains("sample '1' has an image and no .cls"));
        assert!(error(&[("1.cls", b"0")]).contains("sample '1' has a .cls file and no"));
        assert!(
            error(&[("1.cls", b"cat"), ("1.png", b"x")]).contains("'1.cls' holds \"cat\", not the number")
        );
        assert!(error(&[("1.png", b"x"), ("1.jpg", b"x"), ("1.cls", b"0")]).contains("has two images"));
        assert!(error(&[("README", b"x")]).contains("no image"));
        assert!(scan(Path::new("nowhere")).is_err());
    }

    #[test]
    fn damage_is_bad_data_and_never_a_panic() {
        let whole = archive(&[("1.png", &[7; 700]), ("1.cls", b"0"), ("2.cls", b"1"), ("2.png", &[9; 30])]);
        assert_eq!(scan_bytes(&whole).unwrap().len(), 2);
        for end in (0..whole.len()).step_by(37) {
            if let Err(error) = scan_bytes(&whole[..end]) {
                assert_eq!(error.code(), ExitCode::BadData, "{error}");
            }
        }
        for bit in (0..2048 * 8).step_by(7) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Err(error) = scan_bytes(&damaged) {
                assert_eq!(error.code(), ExitCode::BadData, "{error}");
            }
        }
    }
}
