//! `cargo xtask setup`: from a bare Debian 12 with Rust to a working build.
//!
//! Each need is probed first, so a second run takes well under a second. What cannot be installed here (no root, another
//! system) is named exactly, with the modules to load on a cluster.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;

/// libtorch comes from this wheel: tch 0.24 is written against exactly this version.
const TORCH: &str = "2.11.0";
/// libtorch.so names these two even where no GPU is used; the other CUDA wheels (2 GB) are not needed.
const WHEELS: [&str; 3] = ["torch==2.11.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];
/// For the tests that open our files as a Python user would.
const PYTHON_TOOLS: [&str; 4] = ["h5py", "numpy", "pillow", "webdataset"];

/// Something the build or the tests need from the system.
struct Need {
    what: &'static str,
    packages: &'static [&'static str],
    module: &'static str,
    present: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need {
        what: "C and C++ compiler",
        packages: &["g++", "make"],
        module: "gcc",
        present: || shell::succeeds("c++", &["--version"]),
    },
    Need {
        what: "pkg-config",
        packages: &["pkg-config"],
        module: "pkgconf",
        present: || shell::succeeds("pkg-config", &["--version"]),
    },
    Need {
        what: "libclang (reads mpi.h)",
        packages: &["libclang-dev"],
        module: "llvm",
        present: libclang_present,
    },
    Need {
        what: "MPI (OpenMPI or MPICH)",
        packages: &["libopenmpi-dev", "openmpi-bin"],
        module: "openmpi",
        present: || shell::succeeds("mpicc", &["--version"]) && shell::succeeds("mpirun", &["--version"]),
    },
    Need {
        what: "HDF5 1.10 or later, serial",
        packages: &["libhdf5-dev"],
        module: "hdf5",
        present: || {
            std::env::var_os("HDF5_DIR").is_some()
                || shell::succeeds("pkg-config", &["--exists", "hdf5"])
                || shell::succeeds("pkg-config", &["--exists", "hdf5-serial"])
        },
    },
    Need {
        what: "Python 3 with pip and venv (for the libtorch wheel and the format tests)",
        packages: &["python3", "python3-pip", "python3-venv"],
        module: "python",
        present: || shell::succeeds("python3", &["-c", "import pip, venv, ensurepip"]),
    },
];

/// What only the tests need.
const TEST_NEEDS: &[Need] = &[
    // Several nodes in namespaces, booted by `testkit::slurm`.
    Need {
        what: "Slurm daemons, munge and namespace tools (for the cluster tests)",
        // libpmix-dev has the unversioned name by which slurmd loads PMIx; without it `srun --mpi=pmix` hangs.
        packages: &[
            "slurmctld",
            "slurmd",
            "slurm-client",
            "munge",
            "libpmix-dev",
            "libpmi2-0",
            "iproute2",
            "util-linux",
        ],
        module: "slurm",
        present: slurm_present,
    },
    Need {
        what: "ShellCheck (for the tests of the batch scripts)",
        packages: &["shellcheck"],
        module: "shellcheck",
        present: || shell::succeeds("shellcheck", &["--version"]),
    },
];

/// Installs what is missing.
pub fn run() -> Result<()> {
    system_packages()?;
    // They wait for the network more than they work.
    let downloads = [test_packages, libtorch, python_tools];
    std::thread::scope(|scope| {
        let running = downloads.map(|download| scope.spawn(download));
        let ended = running.map(|download| download.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.into_iter().collect()
    })
}

fn system_packages() -> Result<()> {
    provide(NEEDS, |packages, missing| {
        let modules: Vec<&str> = missing.iter().map(|need| need.module).collect();
        bail!(
            "not root on Debian: install them yourself\n  Debian/Ubuntu: sudo apt-get install {}\n  cluster:       \
             module load {}\nthen run this again",
            packages.join(" "),
            modules.join(" ")
        )
    })
}

/// A machine where they cannot be installed can still be built on; the tests that need them then fail saying so.
fn test_packages() -> Result<()> {
    provide(TEST_NEEDS, |packages, _| {
        eprintln!("setup: not root on Debian: some tests will fail; they need {}", packages.join(" "));
        Ok(())
    })
}

/// Installs what is missing of `needs`; where that is not possible `refused` is told the packages and the needs.
fn provide(needs: &[Need], refused: impl FnOnce(&[&str], &[&Need]) -> Result<()>) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    let names: Vec<&str> = missing.iter().map(|need| need.what).collect();
    eprintln!("setup: missing: {}", names.join(", "));
    if !may_install() {
        return refused(&packages, &missing);
    }
    let _quiet = NoDaemons::start()?;
    install(&packages)?;
    match missing.iter().find(|need| !(need.present)()) {
        Some(need) => bail!("{} is still not found after installing {}", need.what, need.packages.join(" ")),
        None => Ok(()),
    }
}

fn slurm_present() -> bool {
    let daemons = ["/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/sbin/munged", "/usr/bin/sbatch"];
    daemons.iter().all(|path| Path::new(path).exists())
        && shell::succeeds("sh", &["-c", "ls /usr/lib/*/libpmix.so && PATH=$PATH:/usr/sbin ip -V"])
}

/// Keeps packages from starting their daemons: the tests start their own.
struct NoDaemons {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoDaemons {
    // The rule against plain writes protects run directories.
    #[allow(clippy::disallowed_methods)]
    fn start() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

fn may_install() -> bool {
    shell::succeeds("sh", &["-c", "test $(id -u) = 0 && command -v apt-get"])
}

fn install(packages: &[&str]) -> Result<()> {
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    shell::run(apt().args(["update", "-qq"]))?;
    shell::run(apt().args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
}

fn libclang_present() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let llvm = folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm-"));
    let has = |dir: &Path| {
        let files = fs::read_dir(dir).into_iter().flatten().flatten();
        files.into_iter().any(|file| is_libclang(&file.file_name().to_string_lossy()))
    };
    llvm.map(|entry| entry.path().join("lib")).any(|dir| has(&dir)) || has(Path::new("/usr/lib64"))
}

/// What bindgen can load. libclang-cpp, which LLVM's own tools bring along, is another library.
fn is_libclang(name: &str) -> bool {
    name.starts_with("libclang.so") || (name.starts_with("libclang-") && !name.starts_with("libclang-cpp"))
}

fn libtorch() -> Result<()> {
    if libtorch_version(Path::new(".libtorch")).is_some_and(|version| version == TORCH) {
        return Ok(());
    }
    // Unpacked beside and renamed, so that an interrupted set-up leaves nothing half there.
    let (fresh, place) = (Path::new(".deps.new"), Path::new(".deps"));
    let _ = fs::remove_dir_all(fresh);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]);
    shell::run(pip.arg(fresh).args(WHEELS)).context("libtorch is the C++ part of the torch wheel")?;
    let _ = fs::remove_dir_all(place);
    rename(fresh, place)?;
    let _ = fs::remove_file(".libtorch");
    std::os::unix::fs::symlink(".deps/torch", ".libtorch").context("cannot link .libtorch")?;
    match libtorch_version(Path::new(".libtorch")) {
        Some(version) if version == TORCH => Ok(()),
        found => bail!("the wheel holds libtorch {found:?}, not {TORCH}"),
    }
}

fn libtorch_version(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim_matches(['\'', '"']).split('+').next()?.to_string())
}

fn python_tools() -> Result<()> {
    let python = ".venv/bin/python3";
    if shell::succeeds(python, &["-c", "import h5py, numpy, PIL, webdataset"]) {
        return Ok(());
    }
    shell::run(Command::new("python3").args(["-m", "venv", ".venv"]))?;
    let mut pip = Command::new(python);
    shell::run(
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PYTHON_TOOLS),
    )
}

// The rule against renaming protects run directories; this folder is a download.
#[allow(clippy::disallowed_methods)]
fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_of_clang_tools_is_not_libclang() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang-14.0.6.so"] {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclang-cpp.so", "libclangAST.a", "libLLVM-14.so"] {
            assert!(!is_libclang(name), "{name}");
        }
    }
}
