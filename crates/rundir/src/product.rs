//! The files that a stage has made for others, as the `outcome.json` of a finished stage lists them: a stage whose files
//! are gone or of another size has to be done again, and whoever reads one can tell that it is the one that was made.

use crate::layout::{RunDir, StageKey};
use crate::stage::Outcome;
use crate::vfs::Vfs;
use equipoise_base::hash::xxh3;
use equipoise_base::{Error, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

/// By path from the run directory.
pub type Products = BTreeMap<String, Product>;

/// A file as it was committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// Its size.
    pub bytes: u64,
    /// Its checksum, as 16 hexadecimal digits.
    pub xxh3: String,
}

impl Product {
    /// Of a file that holds `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, xxh3: format!("{:016x}", xxh3(bytes)) }
    }
}

/// The first of these files that is gone, or has another size than it had; their content is not read.
///
/// # Errors
/// 74 if one cannot be looked at.
pub fn first_lost<'a>(vfs: &dyn Vfs, run: &RunDir, products: &'a Products) -> Result<Option<&'a str>> {
    for (name, product) in products {
        let path = run.root().join(name);
        match vfs.metadata(&path) {
            Ok(metadata) if metadata.len == product.bytes => {}
            Ok(_) => return Ok(Some(name)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(name)),
            Err(error) => return Err(Error::io("look at", &path, error)),
        }
    }
    Ok(None)
}

/// Refuses `bytes`, read from `path`, if it is in the folder of a stage that made other bytes. Files that no stage has
/// recorded pass.
///
/// # Errors
/// 65 if they differ; 65, 74 if the records of the stage cannot be read.
pub fn check(vfs: &dyn Vfs, run: &RunDir, path: &Path, bytes: &[u8]) -> Result<()> {
    let Some((key, name)) = maker(run, path) else { return Ok(()) };
    let outcome = Outcome::read(vfs, &run.stage(&key))?;
    let Some(made) = outcome.as_ref().and_then(|outcome| outcome.files.get(&name)) else { return Ok(()) };
    let read = Product::of(bytes);
    ensure!(
        read == *made,
        BadData,
        "{}: damaged, the checksum is {} instead of {}",
        path.display(),
        read.xxh3,
        made.xxh3
    );
    Ok(())
}

/// The stage in whose folder a file is, and the file's path from the run directory.
fn maker(run: &RunDir, path: &Path) -> Option<(StageKey, String)> {
    let name = path.strip_prefix(run.root()).ok()?.to_str()?;
    let (stage, _) = name.strip_prefix("stages/")?.split_once('/')?;
    Some((StageKey::parse(stage)?, name.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::{commit_bytes, create_dirs};
    use crate::fault::FaultFs;
    use equipoise_base::ExitCode;

    const NAME: &str = "stages/train.g/model.safetensors";

    #[test]
    fn lost_cut_and_changed_files_are_noticed_and_strangers_pass() {
        let (fs, run) = (FaultFs::new(), RunDir::new("/run"));
        let stage = run.stage(&StageKey::parse("train.g").unwrap());
        create_dirs(&fs, stage.root()).unwrap();
        let path = run.root().join(NAME);
        let files: Products = [(NAME.to_string(), Product::of(b"weights"))].into();
        assert_eq!(first_lost(&fs, &run, &files).unwrap(), Some(NAME));
        commit_bytes(&fs, &path, b"weights", None).unwrap();
        assert_eq!(first_lost(&fs, &run, &files).unwrap(), None);
        check(&fs, &run, &path, b"what a run of an earlier release has not recorded").unwrap();

        let outcome = Outcome { files: files.clone(), ..Outcome::new(ExitCode::Done, 0, 1, "here", 0.) };
        outcome.write(&fs, &stage, None).unwrap();
        check(&fs, &run, &path, b"weights").unwrap();
        let error = check(&fs, &run, &path, b"weighty").unwrap_err();
        assert_eq!(error.code(), ExitCode::BadData);
        assert!(error.message().starts_with("/run/stages/train.g/model.safetensors: damaged"), "{error}");
        check(&fs, &run, Path::new("/elsewhere/model.safetensors"), b"a user's own").unwrap();

        commit_bytes(&fs, &path, b"weight", None).unwrap();
        assert_eq!(first_lost(&fs, &run, &files).unwrap(), Some(NAME));
    }
}
