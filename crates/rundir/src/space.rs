//! Is there room for the plan? Asked before the first step, not found out in the middle.

use crate::vfs::{Space, Vfs};
use equipoise_base::{Error, ExitCode, Result};
use std::path::Path;

/// Requires that `needed` is free where `path` is, or will be, created.
///
/// What is free is what the file system reports; a quota below that is found only when it is met (exit 74).
///
/// # Errors
/// 73 with what is required and what is free; 74 if the file system cannot be asked.
pub fn require(vfs: &dyn Vfs, path: &Path, needed: Space) -> Result<()> {
    let exists = |dir: &&Path| !dir.as_os_str().is_empty() && vfs.exists(dir).unwrap_or(false);
    let nearest = path.ancestors().find(exists).unwrap_or(Path::new("."));
    let free = vfs.space(nearest).map_err(|error| Error::io("ask for free space of", nearest, error))?;
    if needed.bytes <= free.bytes && needed.inodes <= free.inodes {
        return Ok(());
    }
    let message = format!(
        "{}: the plan requires {} bytes and {} inodes, and {} bytes and {} inodes are free",
        path.display(),
        needed.bytes,
        needed.inodes,
        free.bytes,
        free.inodes
    );
    Err(Error::new(ExitCode::NoSpace, message).next("free some space, or choose a run directory elsewhere"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultFs;
    use crate::real::RealFs;

    #[test]
    fn too_little_of_either_is_refused_with_both_numbers() {
        let fs = FaultFs::new();
        fs.limit_bytes(Some(100));
        fs.limit_inodes(Some(5));
        let ask = |bytes, inodes| require(&fs, Path::new("/not/yet/there"), Space { bytes, inodes });
        ask(100, 4).unwrap();
        for (bytes, inodes) in [(101, 4), (100, 5)] {
            let error = ask(bytes, inodes).unwrap_err();
            assert_eq!(error.code(), ExitCode::NoSpace);
            assert!(
                error.message().contains(&format!("requires {bytes} bytes and {inodes} inodes")),
                "{error}"
            );
            assert!(error.message().contains("100 bytes and 4 inodes are free"), "{error}");
        }
    }

    #[test]
    fn the_real_file_system_answers_for_paths_to_come() {
        let path = std::env::temp_dir().join("not/yet/there");
        require(&RealFs, &path, Space { bytes: 1, inodes: 1 }).unwrap();
        require(&RealFs, Path::new("not/yet/there"), Space { bytes: 1, inodes: 0 }).unwrap();
        assert!(require(&RealFs, &path, Space { bytes: u64::MAX, inodes: 1 }).is_err());
    }
}
