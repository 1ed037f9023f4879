//! What a cluster needs of this machine.

use std::path::Path;
use std::process::{Command, Stdio};

/// Programs, and the Debian package that brings each.
const PROGRAMS: [(&str, &str); 8] = [
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("sbatch", "slurm-client"),
    ("munged", "munge"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Why no cluster can be booted here; none if one can.
pub fn missing() -> Option<String> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Some("namespaces and daemons need root: run the tests as root, as in a container".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let found = |program: &str| folders.iter().any(|folder| folder.join(program).is_file());
    if let Some((program, package)) = PROGRAMS.into_iter().find(|(program, _)| !found(program)) {
        return Some(format!("{program} (package {package}) is not installed: run `cargo xtask setup`"));
    }
    // slurmd loads it by this name, which only the -dev package has; without it `srun --mpi=pmix` hangs.
    let libraries = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    if !libraries.iter().any(|folder| Path::new(folder).join("libpmix.so").exists()) {
        return Some("libpmix.so (package libpmix-dev) is not installed: run `cargo xtask setup`".into());
    }
    let mut probe = Command::new("unshare");
    probe.args(["--net", "--uts", "--mount", "--pid", "--fork", "true"]).stderr(Stdio::null());
    match probe.status() {
        Ok(status) if status.success() => None,
        _ => Some("this container may not make namespaces: start it with --privileged".into()),
    }
}
