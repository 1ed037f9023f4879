//! Which files of a component hold its weights.

use crate::component::read_text;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// First part of the name of a weight file: diffusers' and transformers'.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Where the tensors of a component are.
#[derive(Clone, Debug)]
pub(crate) enum Located {
    /// All in one file.
    Single(PathBuf),
    /// Spread over shards, as an index says.
    Sharded {
        /// The index.
        index: PathBuf,
        /// File of each tensor.
        tensors: BTreeMap<String, PathBuf>,
    },
}

impl Located {
    /// Index and weight files, each once, in name order.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self {
            Located::Single(path) => vec![path.clone()],
            Located::Sharded { index, tensors } => {
                let mut files: Vec<PathBuf> = tensors.values().cloned().chain([index.clone()]).collect();
                files.sort();
                files.dedup();
                files
            }
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Finds the weights of a component: the variant without a name (full precision) before `fp16` before others, and one
/// file before shards.
///
/// # Errors
/// 65 if there are none, or if the index is damaged; 74 if the folder cannot be listed.
pub(crate) fn weights(dir: &Path) -> Result<Located> {
    let names = list(dir)?;
    let Some((_, name)) = names.iter().filter_map(|name| Some((rank(name)?, name))).min() else {
        let pickled = names.iter().find(|name| name.ends_with(".bin"));
        let instead = match pickled {
            Some(name) => {
                format!("{name} is a pickle, which is not read: save with safe_serialization=True")
            }
            None => "expected model.safetensors or diffusion_pytorch_model.safetensors".to_string(),
        };
        return Err(Error::data(format!("{}: no safetensors weights; {instead}", dir.display())));
    };
    let path = dir.join(name);
    if !name.ends_with(".json") {
        return Ok(Located::Single(path));
    }
    let index: Index = serde_json::from_str(&read_text(&path)?).or_exit(ExitCode::BadData, path.display())?;
    ensure!(!index.weight_map.is_empty(), BadData, "{}: weight_map names no tensor", path.display());
    let mut tensors = BTreeMap::new();
    for (tensor, file) in index.weight_map {
        // The index is input: it may not lead out of the folder.
        let plain = Path::new(&file).file_name().is_some_and(|name| name == file.as_str());
        ensure!(plain, BadData, "{}: '{file}' of tensor '{tensor}' is no file name", path.display());
        tensors.insert(tensor, dir.join(file));
    }
    Ok(Located::Sharded { index: path, tensors })
}

/// Whether there is anything for [`weights`] to find.
pub(crate) fn has_weights(dir: &Path) -> Result<bool> {
    Ok(list(dir)?.iter().any(|name| rank(name).is_some()))
}

/// Configurations, vocabularies and merges.
pub(crate) fn texts(dir: &Path) -> Result<Vec<PathBuf>> {
    let is_text = |name: &String| name.ends_with(".json") || name.ends_with(".txt");
    let is_index = |name: &String| rank(name).is_some();
    let is_lock = |name: &String| name.as_str() == crate::lock::NAME;
    Ok(list(dir)?
        .into_iter()
        .filter(|name| is_text(name) && !is_index(name) && !is_lock(name))
        .map(|name| dir.join(name))
        .collect())
}

/// Preference for a file as the entry to the weights, smallest first; `None` if it is not one.
///
/// `model.safetensors`, `model.fp16.safetensors`, `model.safetensors.index.json`, `model.safetensors.index.fp16.json`
/// and `model.fp16.safetensors.index.json` are; the last two are the spellings of two libraries.
fn rank(name: &str) -> Option<(usize, String, bool)> {
    let mut words: Vec<&str> = name.split('.').collect();
    let stem = words.remove(0);
    let sharded = words.contains(&"index");
    let last = if sharded { "json" } else { "safetensors" };
    if !STEMS.contains(&stem) || !words.contains(&"safetensors") || words.last() != Some(&last) {
        return None;
    }
    words.retain(|word| !["safetensors", "index", "json"].contains(word));
    let variant = words.join(".");
    let order = ["", "fp32", "fp16", "bf16"].iter().position(|known| *known == variant).unwrap_or(usize::MAX);
    Some((order, variant, sharded))
}

fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_precision_and_whole_files_come_first() {
        let mut names = [
            "model.safetensors.index.fp16.json",
            "model.non_ema.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
            "model.fp16.safetensors",
            "diffusion_pytorch_model.safetensors",
        ];
        names.sort_by_key(|name| rank(name).unwrap());
        assert_eq!(
            names,
            [
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.safetensors.index.json",
                "model.fp16.safetensors",
                "model.safetensors.index.fp16.json",
                "model.non_ema.safetensors",
            ]
        );
        for other in ["config.json", "model-00001-of-00002.safetensors", "model.bin", "pytorch_model.bin"] {
            assert_eq!(rank(other), None, "{other}");
        }
    }
}
