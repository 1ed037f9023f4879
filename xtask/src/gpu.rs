//! `cargo xtask gpu`: everything that `benches/gpu/run.sh` needs on a machine with a GPU, in one ignored folder.
//!
//! That machine has no MPI, no HDF5 and no compiler to rely on, but a PyTorch: the binaries are built without MPI, with
//! HDF5 inside and NCCL looked up at run time, and find libtorch through `LD_LIBRARY_PATH`. Everything else that
//! the script reads is tracked by git, and the Python peers need only what comes with PyTorch (torchvision,
//! safetensors, numpy), so no wheel travels.

use crate::{setup, shell};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where it is packed.
const FOLDER: &str = ".gpu";
/// The packed programs there.
const ARCHIVE: &str = "bin.tar.gz";
/// Packages and the programs they build: the front end, what it starts, and the timed loops.
const PROGRAMS: [(&str, &str); 6] = [
    ("equipoise", "equipoise"),
    ("step-train", "equipoise-train"),
    ("step-shards", "equipoise-shards"),
    ("step-verify", "equipoise-verify"),
    ("step-weights", "equipoise-weights"),
    ("equipoise-bench", "equipoise-bench"),
];
/// Step binaries that are the same program as `equipoise-train` under another name: links to it, to save space.
const LINKED: [&str; 4] = ["prepare", "features", "generate", "metrics"];
/// What may travel to such a machine in all: the tracked files and the folder.
const LIMIT: u64 = 64 << 20;
/// HDF5 2 is configured by nothing older.
const CMAKE: (u32, u32) = (3, 26);
/// Where a newer CMake is put if the system's is older.
const CMAKE_WHEEL: &str = "target/tools";

/// Builds and packs, and says what travels.
pub fn run() -> Result<()> {
    setup::run()?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--profile", "dist"]);
    for (package, _) in PROGRAMS {
        cargo.args(["--package", package]);
    }
    cargo.args(["--no-default-features", "--features", "nccl,hdf5-static"]).env("CMAKE", cmake()?);
    shell::run(&mut cargo)?;
    pack(Path::new("target/dist"), Path::new(FOLDER))?;
    let (tracked, packed) = (tracked_bytes()?, folder_bytes(Path::new(FOLDER))?);
    let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{FOLDER}: {:.1} MiB, tracked files: {:.1} MiB, together {:.1} of {:.0} MiB",
        megabytes(packed),
        megabytes(tracked),
        megabytes(tracked + packed),
        megabytes(LIMIT)
    );
    ensure!(tracked + packed <= LIMIT, "too much to travel");
    println!("on the machine with the GPU, from the repository's root: benches/gpu/run.sh --out FOLDER");
    Ok(())
}

/// A fresh folder with the programs in an archive: they compress to less than half.
// The rule protects run directories.
#[allow(clippy::disallowed_methods)]
fn pack(built: &Path, folder: &Path) -> Result<()> {
    let unpacked = built.join("gpu");
    let bin = unpacked.join("bin");
    for old in [folder, &unpacked] {
        let _ = fs::remove_dir_all(old);
    }
    for new in [folder, &bin] {
        fs::create_dir_all(new).with_context(|| new.display().to_string())?;
    }
    for (_, name) in PROGRAMS {
        let from = built.join(name);
        fs::copy(&from, bin.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    for name in LINKED {
        let link = bin.join(format!("equipoise-{name}"));
        std::os::unix::fs::symlink("equipoise-train", &link).with_context(|| link.display().to_string())?;
    }
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--file"]).arg(folder.join(ARCHIVE)).arg("--directory").arg(&unpacked);
    shell::run(tar.arg("bin"))
}

/// A CMake that is new enough: `$CMAKE`, the system's, or the one that the Python package index has.
fn cmake() -> Result<PathBuf> {
    let own = Path::new(CMAKE_WHEEL).join("cmake/data/bin/cmake");
    let chosen = std::env::var_os("CMAKE").map(PathBuf::from);
    let candidates = chosen.into_iter().chain([PathBuf::from("cmake"), own.clone()]);
    if let Some(found) = candidates.into_iter().find(|cmake| cmake_version(cmake) >= Some(CMAKE)) {
        return Ok(std::path::absolute(&found).ok().filter(|path| path.is_file()).unwrap_or(found));
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", CMAKE_WHEEL]);
    shell::run(pip.arg("cmake>=3.26"))
        .context("HDF5 wants CMake 3.26 or later: install one, or set CMAKE")?;
    std::path::absolute(own).context("no current folder")
}

fn cmake_version(cmake: &Path) -> Option<(u32, u32)> {
    let output = Command::new(cmake).arg("--version").output().ok()?;
    parse_cmake_version(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `cmake version 3.25.1`.
fn parse_cmake_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.lines().next()?.rsplit(' ').next()?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Size of everything that git tracks.
fn tracked_bytes() -> Result<u64> {
    let output = Command::new("git").args(["ls-files", "-z"]).output().context("git ls-files")?;
    ensure!(output.status.success(), "git ls-files failed");
    let files = output.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let size = |name: &[u8]| {
        fs::symlink_metadata(String::from_utf8_lossy(name).as_ref()).map_or(0, |meta| meta.len())
    };
    Ok(files.map(size).sum())
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let (path, meta) = (entry.as_ref().map(|e| e.path()), entry.as_ref().map(|e| e.metadata()));
        let (Ok(path), Ok(Ok(meta))) = (path, meta) else { continue };
        total += if meta.is_dir() { folder_bytes(&path)? } else { meta.len() };
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn versions_of_cmake() {
        assert_eq!(parse_cmake_version("cmake version 3.25.1\n\nCMake suite"), Some((3, 25)));
        assert_eq!(parse_cmake_version("cmake version 4.1.2"), Some((4, 1)));
        assert_eq!(parse_cmake_version(""), None);
        assert!(Some((3, 25)) < Some(CMAKE) && Some((4, 0)) > Some(CMAKE) && None < Some(CMAKE));
    }

    /// A new program that is forgotten here would be missed only where nobody can fetch it.
    #[test]
    fn every_program_is_packed() {
        let manifest = shell::root().join("Cargo.toml");
        let mut cargo = shell::cargo();
        cargo.args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"]).arg(manifest);
        let metadata: Value = serde_json::from_slice(&cargo.output().unwrap().stdout).unwrap();
        let mut built = BTreeSet::new();
        for package in metadata["packages"].as_array().unwrap() {
            let targets =
                package["targets"].as_array().unwrap().iter().filter(|target| target["kind"][0] == "bin");
            let text = |value: &Value| value.as_str().unwrap().to_string();
            built.extend(targets.map(|target| (text(&package["name"]), text(&target["name"]))));
        }
        let linked = LINKED.map(|name| (format!("step-{name}"), format!("equipoise-{name}")));
        let packed = PROGRAMS.map(|(package, name)| (package.to_string(), name.to_string()));
        let for_developers = ["xtask", "equipoise-fuzz"].map(|name| (name.to_string(), name.to_string()));
        assert_eq!(built, packed.into_iter().chain(linked).chain(for_developers).collect());
    }

    #[test]
    fn linked_programs_are_the_same() {
        let code = |name: &str| {
            let path = shell::root().join("bin").join(name).join("src/main.rs");
            let text = fs::read_to_string(path).unwrap();
            text.lines().filter(|line| !line.starts_with("//")).map(str::to_string).collect::<Vec<_>>()
        };
        LINKED.iter().for_each(|name| assert_eq!(code(name), code("train"), "{name}"));
    }

    /// The script runs where nothing can be mended: its syntax, and that every file it names is tracked.
    #[test]
    fn the_script_parses_and_names_files_that_travel() {
        let script = shell::root().join("benches/gpu/run.sh");
        let parsed = Command::new("bash").arg("-n").arg(&script).output().unwrap();
        assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
        if shell::succeeds("shellcheck", &["--version"]) {
            let output = Command::new("shellcheck").arg(&script).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        let text = fs::read_to_string(&script).unwrap();
        let code = text.lines().filter(|line| !line.starts_with('#'));
        let words = code.flat_map(|line| line.split(|c: char| c.is_whitespace() || "\"'()=;".contains(c)));
        let ours = words
            .filter(|word| ["benches/", "tests/", "configs/"].iter().any(|start| word.starts_with(start)));
        // Of a name that a variable completes, the folder.
        let named: BTreeSet<&str> = ours.map(|word| word.split('$').next().unwrap_or_default()).collect();
        assert!(named.len() >= 5, "{named:?}");
        for name in named {
            let mut git = Command::new("git");
            let tracked = git.current_dir(shell::root()).args(["ls-files", "--", name]).output().unwrap();
            assert!(!tracked.stdout.is_empty(), "{name} is not tracked by git");
        }
        let archive = format!("{FOLDER}/{ARCHIVE}");
        assert!(text.contains(&archive), "the script does not unpack {archive}");
        for program in ["equipoise", "equipoise-verify", "equipoise-bench"] {
            assert!(text.contains(&format!("\"$bin/{program}\"")), "the script does not run {program}");
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let folder = std::env::temp_dir().join(format!("xtask-gpu-{}", std::process::id()));
        let error = pack(&folder.join("built"), &folder.join("packed")).unwrap_err();
        let _ = fs::remove_dir_all(&folder);
        assert!(format!("{error:#}").contains("built/equipoise"), "{error:#}");
    }
}
