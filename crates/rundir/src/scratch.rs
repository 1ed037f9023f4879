//! Names of things that are not finished, and their removal once their writer is gone.
//!
//! A scratch file or directory is a hidden sibling `.<name>.<tag>-<nonce>.tmp` of its final name. The tag is that of
//! the lease it was written under, so that an owner can tell its own from those of earlier attempts.

use crate::lease::LeaseGuard;
use crate::nonce::nonce;
use crate::vfs::Vfs;
use equipoise_base::{Error, Result, ensure};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Tag of what is written without a lease.
const UNGUARDED: &str = "00000000";

/// A scratch name beside `path` that nobody else uses.
pub fn sibling(path: &Path, guard: Option<&LeaseGuard>) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    ensure!(name.is_some(), Io, "{}: not a file name that can be committed", path.display());
    let tag = guard.map_or(UNGUARDED, LeaseGuard::tag);
    Ok(path.with_file_name(format!(".{}.{tag}-{}.tmp", name.unwrap_or_default(), nonce())))
}

/// The tag in a scratch name; none for any other name.
fn tag_of(name: &str) -> Option<&str> {
    let (stem, unique) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (tag, nonce) = unique.split_once('-')?;
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!stem.is_empty() && tag.len() == 8 && nonce.len() == 16 && is_hex(tag) && is_hex(nonce)).then_some(tag)
}

/// Removes everything below `dir` that was left unfinished by anyone but the owner of `guard`; returns how many.
///
/// To be called by the owner of the stage only, right after the lease was taken. Whoever was fenced off and still
/// writes there finds its scratch gone and fails, as it must.
///
/// # Errors
/// 69 if the lease is lost; 74 if a directory cannot be read or an entry not be removed.
pub fn remove_abandoned(vfs: &dyn Vfs, dir: &Path, guard: &LeaseGuard) -> Result<usize> {
    guard.check()?;
    remove_below(vfs, dir, guard.tag())
}

fn remove_below(vfs: &dyn Vfs, dir: &Path, keep: &str) -> Result<usize> {
    let entries = vfs.list_if_exists(dir).map_err(|error| Error::io("list", dir, error))?;
    let mut removed = 0;
    for entry in entries {
        let path = dir.join(&entry.name);
        match (tag_of(&entry.name), entry.is_dir) {
            (Some(tag), _) if tag == keep => {}
            (Some(_), is_dir) => {
                let result = if is_dir { vfs.remove_dir_all(&path) } else { vfs.remove_file(&path) };
                match result {
                    Ok(()) => removed += 1,
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::io("remove", &path, error)),
                }
            }
            (None, true) => removed += remove_below(vfs, &path, keep)?,
            (None, false) => {}
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scratch_names_have_a_tag() {
        let scratch = sibling(Path::new("a/b.h5"), None).unwrap();
        assert_eq!(scratch.parent(), Some(Path::new("a")));
        assert_eq!(tag_of(scratch.file_name().unwrap().to_str().unwrap()), Some(UNGUARDED));
        for name in
            [".bashrc", "a.tmp", ".a.tmp", ".a.0-1.tmp", "..00000000-0123456789abcdef.tmp", ".nfs0001"]
        {
            assert_eq!(tag_of(name), None, "{name}");
        }
        assert!(sibling(Path::new("/"), None).is_err());
    }
}
