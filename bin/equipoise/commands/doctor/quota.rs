//! What a user may still write: the file system's own numbers, and the quota that its command tells.

use super::Finding;
use crate::output;
use equipoise_rundir::{RealFs, Vfs};
use equipoise_slurm::{Commands, Failure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Below this a run of any use does not fit.
const ENOUGH: u64 = 1 << 30;
const ENOUGH_FILES: u64 = 10_000;
/// A server that is slow with quotas is not worth a longer wait.
const LIMIT: Duration = Duration::from_secs(10);

/// Space and files, as the file system of `root` reports them for all its users, and this user's quota there.
pub fn findings(root: &Path) -> Vec<Finding> {
    vec![Finding::new("free space", free_space(root)), Finding::new("quota", quota(root))]
}

fn free_space(root: &Path) -> Result<String, String> {
    let space = RealFs.space(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let files =
        if space.inodes == u64::MAX { "no limit of files".into() } else { format!("{} files", space.inodes) };
    let found = format!("{} and {files} in {}", output::bytes(space.bytes), root.display());
    if space.bytes >= ENOUGH && space.inodes >= ENOUGH_FILES { Ok(found) } else { Err(found) }
}

fn quota(root: &Path) -> Result<String, String> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    let (kind, mount) = mount_of(&mounts, &root).unwrap_or_else(|| ("unknown".into(), root.clone()));
    let user = std::env::var("USER").unwrap_or_default();
    let (program, args) = command(&kind, &mount, &user);
    match Commands::within(LIMIT).run(program, &args) {
        Ok(answer) => judge(&answer.out),
        Err(Failure::Missing(_)) => {
            Ok(format!("{kind} in {}: there is no `{program}` here to ask; ask your site", mount.display()))
        }
        // Some say so by their status, and mean no more than what they print.
        Err(failure) => Ok(format!("`{program}` tells nothing: {failure}")),
    }
}

/// Type and folder of the file system that a path is in, from /proc/mounts.
fn mount_of(mounts: &str, path: &Path) -> Option<(String, PathBuf)> {
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        // Spaces in names are written as \040.
        let folder = PathBuf::from(fields.next()?.replace("\\040", " "));
        path.starts_with(&folder).then_some((fields.next()?.to_string(), folder))
    });
    // Of two at one place the later one hides the earlier.
    mounted.max_by_key(|(_, folder)| folder.components().count())
}

/// What tells a user's quota on each kind of file system.
fn command(kind: &str, mount: &Path, user: &str) -> (&'static str, Vec<String>) {
    let mount = mount.display().to_string();
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    match kind {
        "lustre" => ("lfs", words(&["quota", "-h", "-u", user, &mount])),
        "gpfs" => ("mmlsquota", words(&["-u", user, "--block-size", "auto"])),
        "beegfs" => ("beegfs-ctl", words(&["--getquota", "--uid", user])),
        _ => ("quota", words(&["-w", "-s"])),
    }
}

/// All of these programs put a star behind a number that is over its limit.
fn judge(printed: &str) -> Result<String, String> {
    let lines: Vec<&str> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return Ok("none is set for you".into());
    }
    let found = lines.join(" | ");
    let over = |word: &str| {
        word.strip_suffix('*').is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    };
    if lines.iter().flat_map(|line| line.split_whitespace()).any(over) {
        return Err(format!("over the limit: {found}"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "overlay / overlay rw 0 0\nserver:/home /home nfs4 rw 0 0\n\
                          lnet:/work /mnt/my\\040work lustre rw 0 0\ntmpfs /home tmpfs rw 0 0\n";

    #[test]
    fn the_innermost_and_latest_mount_counts() {
        let kind = |path: &str| mount_of(MOUNTS, Path::new(path)).unwrap().0;
        assert_eq!((kind("/tmp").as_str(), kind("/home/me").as_str()), ("overlay", "tmpfs"));
        assert_eq!(mount_of(MOUNTS, Path::new("/mnt/my work/x")).unwrap().1, Path::new("/mnt/my work"));
        assert_eq!(kind("/homes"), "overlay");
        assert_eq!(command("lustre", Path::new("/mnt/w"), "me").1, ["quota", "-h", "-u", "me", "/mnt/w"]);
        assert_eq!(command("nfs4", Path::new("/home"), "me").0, "quota");
    }

    #[test]
    fn a_star_behind_a_number_is_over_the_limit() {
        let within = "Disk quotas for user me (uid 7):\n Filesystem used quota limit grace files\n /work 3.1G 0k 10G - 12";
        assert!(judge(within).unwrap().contains("/work 3.1G"));
        assert!(judge(&within.replace("3.1G", "11G*")).unwrap_err().starts_with("over the limit"));
        assert!(judge("Disk quotas for user * : none").is_ok());
        assert_eq!(judge("\n").unwrap(), "none is set for you");
    }
}
