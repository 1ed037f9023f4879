//! The synthetic sets of a run directory and the files that each is made of.

use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_rundir::{RealFs, Vfs};
use equipoise_stages::{ShardEntry, ShardIndex};
use std::path::{Component, Path, PathBuf};

/// The index of a set, in its folder.
pub const INDEX: &str = "index.json";

/// One set.
#[derive(Clone, Debug)]
pub struct Set {
    /// `NAME.kSEED`, as its folder is called.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
}

impl Set {
    /// The stage that makes it.
    pub fn stage(&self) -> String {
        format!("generate.{}", self.name)
    }

    /// What it is made of.
    ///
    /// # Errors
    /// 65 if it is not complete or its index is damaged.
    pub fn index(&self) -> Result<ShardIndex> {
        ShardIndex::read(&self.folder)
    }

    /// Where a shard lies.
    ///
    /// # Errors
    /// 65 if the index names a file outside the set.
    pub fn shard(&self, entry: &ShardEntry) -> Result<PathBuf> {
        let inside = entry.path.components().all(|part| matches!(part, Component::Normal(_)));
        let index = || self.folder.join(INDEX);
        let message = || format!("{}: '{}' is outside the set", index().display(), entry.path.display());
        if inside && entry.path.file_name().is_some() {
            Ok(self.folder.join(&entry.path))
        } else {
            Err(Error::data(message()))
        }
    }
}

/// The folder of a shard within its set: one per class, safe as a file name.
pub fn class_folder(entry: &ShardEntry) -> String {
    let folder = entry.path.parent().and_then(Path::file_name);
    folder.map_or_else(|| entry.class.to_string(), |name| name.to_string_lossy().into_owned())
}

/// The sets of a run with these names, or all of them if none is named.
///
/// # Errors
/// 64 if there is no such run or set, 65 if the run has no set.
pub fn sets(run: &Path, names: &[String]) -> Result<Vec<Set>> {
    ensure!(run.is_dir(), Usage, "{}: there is no such directory", run.display());
    let dir = run.join("sets");
    let entries = RealFs.list_if_exists(&dir).map_err(|error| Error::io("list", &dir, error))?;
    let folders = entries.into_iter().filter(|entry| entry.is_dir && !entry.name.starts_with('.'));
    let all: Vec<Set> =
        folders.map(|entry| Set { folder: dir.join(&entry.name), name: entry.name }).collect();
    if all.is_empty() {
        let message = format!("{}: nothing was generated in this run", run.display());
        return Err(Error::data(message).next(format!("equipoise resume {}", run.display())));
    }
    for name in names {
        if !all.iter().any(|set| set.name == *name) {
            return Err(no_such(run, &all, &format!("there is no set '{name}'")));
        }
    }
    let chosen = all.into_iter().filter(|set| names.is_empty() || names.contains(&set.name));
    Ok(chosen.collect())
}

/// The one set of this name, or the only one if none is named.
///
/// # Errors
/// As [`sets`], and 64 if there are several and none is named.
pub fn one_set(run: &Path, name: Option<&String>) -> Result<Set> {
    let names: Vec<String> = name.into_iter().cloned().collect();
    let mut found = sets(run, &names)?;
    match (found.pop(), found.is_empty()) {
        (Some(set), true) => Ok(set),
        (last, _) => {
            found.extend(last);
            Err(no_such(run, &found, "--set NAME.kSEED is needed"))
        }
    }
}

fn no_such(run: &Path, all: &[Set], what: &str) -> Error {
    let names: Vec<&str> = all.iter().map(|set| set.name.as_str()).collect();
    Error::new(ExitCode::Usage, format!("{}: {what}; there are: {}", run.display(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_lie_in_their_set() {
        let set = Set { name: "a.k0".into(), folder: "/run/sets/a.k0".into() };
        let entry = |path: &str| ShardEntry {
            path: path.into(),
            class: 3,
            images: 0,
            failed: vec![],
            retried: 0,
            bytes: 0,
            xxh3: String::new(),
        };
        assert_eq!(set.shard(&entry("coat/c.h5")).unwrap(), Path::new("/run/sets/a.k0/coat/c.h5"));
        for path in ["", "..", "../b.k0/c.h5", "/etc/passwd", "./c.h5"] {
            assert_eq!(set.shard(&entry(path)).unwrap_err().code(), ExitCode::BadData, "{path}");
        }
        assert_eq!(class_folder(&entry("coat/c.h5")), "coat");
        assert_eq!(class_folder(&entry("c.h5")), "3");
    }
}
