//! The folder of a pipeline: `model_index.json` and one folder per component.

use crate::component::{Component, read_text};
use crate::lock::Lock;
use equipoise_base::{Error, ExitCode, Identity, Result, ResultExt as _};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the list of components.
pub const INDEX: &str = "model_index.json";

/// A pipeline's folder, such as `save_pretrained` writes.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    pipeline: String,
    /// Class of each component; components that are switched off (`[null, null]`) are left out.
    classes: BTreeMap<String, String>,
    lock: Option<Lock>,
}

impl Folder {
    /// Reads the index, and the lock if there is one.
    ///
    /// # Errors
    /// 65 naming the file if there is no index, or if index or lock are not what they should be, or do not agree; 74 if they cannot
    /// be read.
    pub fn open(path: &Path) -> Result<Self> {
        let index = path.join(INDEX);
        if !index.is_file() {
            let message =
                format!("{}: no {INDEX}: this is not the folder of a diffusers pipeline", path.display());
            return Err(Error::data(message));
        }
        let lock = Lock::find(path)?;
        if let Some(lock) = &lock {
            lock.check(&index)?;
        }
        let entries: BTreeMap<String, Value> =
            serde_json::from_str(&read_text(&index)?).or_exit(ExitCode::BadData, index.display())?;
        let pipeline = entries.get("_class_name").and_then(Value::as_str).unwrap_or_default().to_string();
        // A component is a pair of library and class; settings of the pipeline are plain values.
        let classes = entries
            .iter()
            .filter_map(|(name, value)| {
                let class = value.as_array().filter(|pair| pair.len() == 2)?[1].as_str()?;
                Some((name.clone(), class.to_string()))
            })
            .collect();
        Ok(Self { path: path.to_owned(), pipeline, classes, lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Class of the pipeline, such as `StableUnCLIPImg2ImgPipeline`; empty if the index does not say.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Names and classes of the components, in name order.
    pub fn classes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.classes.iter().map(|(name, class)| (name.as_str(), class.as_str()))
    }

    /// Whether the index names this component.
    pub fn has(&self, name: &str) -> bool {
        self.classes.contains_key(name)
    }

    /// The recorded hashes, if the folder has a lock.
    pub fn lock(&self) -> Option<&Lock> {
        self.lock.as_ref()
    }

    /// A component by name, such as `unet`.
    ///
    /// # Errors
    /// 65 if the index does not name it (saying what it names), or names it but the component's folder is missing.
    pub fn component(&self, name: &str) -> Result<Component> {
        let Some(class) = self.classes.get(name) else {
            let known = self.classes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let message =
                format!("{}: no component '{name}'; there are: {known}", self.path.join(INDEX).display());
            return Err(Error::data(message));
        };
        let dir = self.path.join(name);
        if !dir.is_dir() {
            let message = format!("{}: missing: {INDEX} names the component '{name}'", dir.display());
            return Err(Error::data(message));
        }
        Ok(Component::new(name, dir, Some(class.clone()), self.lock.clone()))
    }

    /// Every component in name order; each may be missing on its own.
    pub fn components(&self) -> impl Iterator<Item = (&str, Result<Component>)> {
        self.classes.keys().map(|name| (name.as_str(), self.component(name)))
    }

    /// Hashes of everything in the folder that decides the bits of what it generates: those of the lock if there is one,
    /// with which every file is compared when it is loaded; else of every file, which are all read.
    ///
    /// # Errors
    /// As [`Lock::of`].
    pub fn records(&self) -> Result<Lock> {
        self.lock.clone().map_or_else(|| Lock::of(self), Ok)
    }

    /// [`Lock::identity_of`] these components; without a lock their files alone are read.
    ///
    /// # Errors
    /// As [`Lock::of`].
    pub fn identity_of(&self, components: &[&str]) -> Result<Identity> {
        let records = self.lock.clone().map_or_else(|| Lock::of_parts(self, components), Ok)?;
        Ok(records.identity_of(components))
    }
}
