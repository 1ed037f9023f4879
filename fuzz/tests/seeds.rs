//! What the fuzzer begins with passes through its targets.

use equipoise_fuzz::TARGETS;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    #[serde(rename = "reads")]
    _reads: String,
    seeds: Vec<PathBuf>,
}

#[test]
fn every_target_takes_its_seeds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(fuzz.join("targets.toml")).expect("the list");
    let list: BTreeMap<String, Target> = toml::from_str(&list).expect("TOML");
    let mut names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    assert_eq!(list.keys().map(String::as_str).collect::<Vec<_>>(), names);
    for (name, target) in TARGETS {
        let mut taken = 0;
        for folder in &list[*name].seeds {
            for entry in fuzz
                .join("..")
                .join(folder)
                .read_dir()
                .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            {
                let path = entry.expect("an entry").path();
                if path.is_file() {
                    target(&std::fs::read(&path).expect("readable"));
                    taken += 1;
                }
            }
        }
        assert!(taken > 0, "{name} has no seed");
    }
}
