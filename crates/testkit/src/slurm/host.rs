//! One host of a cluster: a process 1 and the namespaces that live and die with it.

use super::conf::{address, node_name};
use crate::tree::{self, Found, Marker};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Where a cluster lives, and what of the rest of the file system its jobs must see.
pub(super) struct Place {
    pub(super) base: PathBuf,
    pub(super) visible: Vec<PathBuf>,
}

/// What process 1 does: makes the host its own, waits for the network, starts the daemon, reaps orphans.
///
/// /tmp is the host's own, as on a real node: Slurm's PMIx keeps files there under names that are the same on every
/// node. Folders that the user may not enter, such as root's home, are covered as well. What is needed of what lies
/// below a covered folder is bound back in.
const PROCESS_1: &str = r#"
set -eu
hostname "$HOST"
mount --bind "$BASE/etc/hosts" /etc/hosts
mount --bind "$BASE/etc/passwd" /etc/passwd
mount --bind "$BASE/etc/group" /etc/group
for covered in $COVERED; do
    private="$BASE/private/$HOST$covered"
    mkdir -p "$private"
    chmod 1777 "$private"
    while IFS= read -r path; do
        case "$path" in "$covered"/*)
            mkdir -p "$private${path#"$covered"}"
            mount --rbind "$path" "$private${path#"$covered"}" ;;
        esac
    done <<< "$VISIBLE"
    mount --rbind "$private" "$covered"
done
ip link set lo up
if [ "$HOST" = ctl ]; then
    ip link add br0 type bridge
    ip addr add "$ADDRESS/24" dev br0
    ip link set br0 up
    setpriv --reuid munge --regid munge --init-groups munged --foreground --force --key-file "$BASE/munge/key" \
        --socket "$BASE/munge/socket" --pid-file "$BASE/munge/pid" --seed-file "$BASE/munge/seed" \
        --log-file "$BASE/munge/log" < /dev/null &
    until [ -S "$BASE/munge/socket" ]; do sleep 0.02; done
    slurmctld -D -i < /dev/null &
else
    read -r _
    ip addr add "$ADDRESS/24" dev eth0
    ip link set eth0 up
    slurmd -D -N "$HOST" < /dev/null &
fi
sleep infinity < /dev/null &
wait
"#;

/// A booted host.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    base: PathBuf,
    unshare: Child,
    /// Its process 1, as seen from outside.
    init: i32,
}

/// The host's own /tmp, seen from outside.
pub(super) fn private_tmp(base: &Path, host: &str) -> PathBuf {
    base.join("private").join(host).join("tmp")
}

impl Host {
    pub(super) fn boot_controller(place: &Place) -> Self {
        let host = Self::boot(place, "ctl", &address(None));
        let socket = place.base.join("munge/socket");
        crate::wait_until("munged answers", Duration::from_secs(20), || socket.exists());
        host
    }

    /// Boots node `number` and plugs it into the controller's bridge.
    pub(super) fn boot_node(place: &Place, number: usize, controller: &Host) -> Self {
        let mut host = Self::boot(place, &node_name(number), &address(Some(number)));
        let (link, init) = (link_name(number), host.init);
        controller.ip(&format!("link add {link} type veth peer name eth0 netns {init}"));
        controller.ip(&format!("link set {link} master br0 up"));
        let told = host.unshare.stdin.take().map(|mut stdin| stdin.write_all(b"the network is there\n"));
        assert!(
            told.is_some_and(|told| told.is_ok()),
            "{} died early: see {}",
            host.name,
            host.log().display()
        );
        host
    }

    #[allow(clippy::disallowed_methods)]
    fn boot(place: &Place, name: &str, address: &str) -> Self {
        let marker = Marker::default();
        let log = File::create(log_path(&place.base, name))
            .unwrap_or_else(|error| panic!("log of {name}: {error}"));
        let copy = log.try_clone().unwrap_or_else(|error| panic!("log of {name}: {error}"));
        let mut command = Command::new("unshare");
        command.args(["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        command.args(["bash", "-c", PROCESS_1]).env_clear().envs(environment(&place.base));
        command.env("HOST", name).env("ADDRESS", address).env("BASE", &place.base);
        let visible: Vec<&Path> =
            place.visible.iter().map(PathBuf::as_path).chain([place.base.as_path()]).collect();
        let lines: Vec<String> = visible.iter().map(|path| path.display().to_string()).collect();
        command.env("VISIBLE", lines.join("\n")).env("COVERED", covered(&visible).join(" "));
        marker.put_on(&mut command);
        command.stdin(Stdio::piped()).stdout(log).stderr(copy);
        // SAFETY: prctl is async-signal-safe.
        unsafe { command.pre_exec(die_with_parent) };
        let unshare = command.spawn().unwrap_or_else(|error| panic!("unshare: {error}"));
        let parent = unshare.id() as i32;
        let mut init = None;
        crate::wait_until(&format!("process 1 of {name}"), Duration::from_secs(20), || {
            let child = |found: &Found| found.parent == parent && found.command.starts_with("bash");
            init = marker.live().into_iter().find(child).map(|found| found.pid);
            init.is_some()
        });
        Self { name: name.into(), base: place.base.clone(), unshare, init: init.unwrap_or_default() }
    }

    fn log(&self) -> PathBuf {
        log_path(&self.base, &self.name)
    }

    /// A command inside the host, as root, with a clean environment.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--uts", "--net", "--pid", "--"]);
        command.arg(program.as_ref()).env_clear().envs(environment(&self.base)).stdin(Stdio::null());
        command
    }

    /// Runs `ip` in the host's network, but among the processes outside: namespaces are named by their pids.
    fn ip(&self, arguments: &str) {
        let output = self.try_ip(arguments);
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn try_ip(&self, arguments: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--", "ip"]).args(arguments.split(' '));
        command.output().unwrap_or_else(|error| panic!("nsenter: {error}"))
    }

    /// On the controller: sets the link of a node up or down.
    pub(super) fn set_link(&self, node: usize, state: &str) {
        self.ip(&format!("link set {} {state}", link_name(node)));
    }

    /// On the controller: removes the link of a node, which may be gone already.
    pub(super) fn unplug(&self, node: usize) {
        self.try_ip(&format!("link delete {}", link_name(node)));
    }

    /// Live processes of the host, process 1 and zombies left out.
    pub(super) fn live(&self) -> Vec<Found> {
        self.of_host(&tree::all())
    }

    /// Those of `all` live processes of this machine that are the host's, process 1 left out.
    pub(super) fn of_host(&self, all: &[Found]) -> Vec<Found> {
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.init);
        let here = |found: &&Found| found.pid != self.init && own.is_some() && namespace(found.pid) == own;
        all.iter().filter(here).cloned().collect()
    }

    /// Ends everything on the host: the kernel kills what is left in a namespace with its process 1.
    pub(super) fn kill(&mut self) {
        tree::send(self.init, libc::SIGKILL);
        // Already reaped is fine.
        let _ = self.unshare.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Name of the controller's end of a node's cable.
fn link_name(number: usize) -> String {
    format!("to-{}", node_name(number))
}

fn log_path(base: &Path, name: &str) -> PathBuf {
    base.join("log").join(format!("host.{name}.log"))
}

fn environment(base: &Path) -> [(&'static str, String); 3] {
    [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("SLURM_CONF", base.join("etc/slurm.conf").display().to_string()),
        ("LANG", "C.UTF-8".into()),
    ]
}

/// Folders that a host must not see as they are: /tmp, and what is closed to ordinary users on the way to something
/// that they need. Outermost first, so that none lies in another.
fn covered(visible: &[&Path]) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let closed = |folder: &Path| {
        folder != Path::new("/")
            && folder.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
    };
    let mut folders = vec![PathBuf::from("/tmp")];
    for path in visible {
        let ancestors: Vec<&Path> = path.ancestors().skip(1).collect();
        if let Some(folder) = ancestors.into_iter().rev().find(|folder| closed(folder)) {
            folders.push(folder.to_path_buf());
        }
    }
    folders.sort();
    folders.dedup();
    let outermost =
        |folder: &&PathBuf| !folders.iter().any(|other| *folder != other && folder.starts_with(other));
    folders.iter().filter(outermost).map(|folder| folder.display().to_string()).collect()
}

fn die_with_parent() -> std::io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
