//! One component of a folder: a model, a tokenizer, a scheduler or an image processor.

use crate::locate;
use crate::lock::Lock;
use crate::weights::WeightFiles;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Names under which components keep their configuration.
const CONFIGS: [&str; 4] =
    ["config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json"];

/// The folder of one component.
#[derive(Clone, Debug)]
pub struct Component {
    name: String,
    dir: PathBuf,
    class: Option<String>,
    lock: Option<Lock>,
}

impl Component {
    pub(crate) fn new(name: &str, dir: PathBuf, class: Option<String>, lock: Option<Lock>) -> Self {
        Self { name: name.into(), dir, class, lock }
    }

    /// A component that stands alone, such as the folder of a single model.
    ///
    /// # Errors
    /// 65 if there is no such folder.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::data(format!("{}: no such folder", dir.display())));
        }
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self::new(&name, dir.to_owned(), None, Lock::find(dir)?))
    }

    /// Name in the index, or of the folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Class that the index or the configuration names, such as `UNet2DConditionModel`.
    pub fn class(&self) -> Option<String> {
        let of_config = || {
            let config: Value = self.config().ok()?;
            let class = config.get("_class_name").or_else(|| config.get("architectures")?.get(0))?;
            class.as_str().map(str::to_owned)
        };
        self.class.clone().or_else(of_config)
    }

    /// The configuration file.
    ///
    /// # Errors
    /// 65 if there is none.
    pub fn config_path(&self) -> Result<PathBuf> {
        let found = CONFIGS.iter().map(|name| self.dir.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| Error::data(format!("{}: no {}", self.dir.display(), CONFIGS.join(", no "))))
    }

    /// The configuration, checked against the lock if there is one.
    ///
    /// # Errors
    /// 65 naming the file and field if it is missing, not JSON or not of this form, or not what was locked.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        self.json(&self.config_path()?)
    }

    /// A file of the component by name, checked against the lock if there is one; `None` if it does not exist.
    ///
    /// # Errors
    /// 65 if the lock records other content; 74 if it cannot be read.
    pub fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        let path = self.dir.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        self.check(&path)?;
        Ok(Some(path))
    }

    /// A JSON file of the component by name; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`Component::config`].
    pub fn json_file<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.dir.join(name);
        if path.is_file() { self.json(&path).map(Some) } else { Ok(None) }
    }

    /// The weights, mapped into memory and, if there is a lock, compared with it byte for byte.
    ///
    /// # Errors
    /// 65 naming the file if there are none, if one is truncated or damaged, or if a shard or a tensor of a shard is
    /// missing; 74 if one cannot be read.
    pub fn weights(&self) -> Result<WeightFiles> {
        let located = locate::weights(&self.dir)?;
        let files = WeightFiles::open(&located)?;
        for path in located.files() {
            self.check(&path)?;
        }
        Ok(files)
    }

    /// The recorded hashes, if there are any.
    pub fn lock(&self) -> Option<&Lock> {
        self.lock.as_ref()
    }

    /// Whether there are weights; tokenizers and schedulers have none.
    ///
    /// # Errors
    /// 74 if the folder cannot be listed.
    pub fn has_weights(&self) -> Result<bool> {
        locate::has_weights(&self.dir)
    }

    /// Files that decide what the component computes, in name order: text and the weights that would be loaded.
    ///
    /// # Errors
    /// As [`Component::weights`], but files are not opened.
    pub fn deciding_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = locate::texts(&self.dir)?;
        if locate::has_weights(&self.dir)? {
            files.extend(locate::weights(&self.dir)?.files());
        }
        files.sort();
        files.dedup();
        Ok(files)
    }

    fn json<T: DeserializeOwned>(&self, path: &Path) -> Result<T> {
        self.check(path)?;
        serde_json::from_str(&read_text(path)?).or_exit(ExitCode::BadData, path.display())
    }

    fn check(&self, path: &Path) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.check(path))
    }
}

/// Reads a text file of a folder.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::data(format!("{}: not UTF-8 text", path.display())))
        }
        result => result.map_err(|error| Error::io("read", path, error)),
    }
}
