//! `--hello DIR` of a step binary: do ranks that are started like those of a run find each other, and has each of their
//! nodes what a run needs? For `equipoise doctor --node`.

use crate::facts::{self, Facts};
use crate::world::{self, World};
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, bail, ensure};
use equipoise_nn::runtime::{self, RuntimeConfig};
use equipoise_rundir::{Process, RealFs, Vfs, commit_bytes};
use equipoise_shards::{FeatureMeta, Features, Matrix, hdf5_version, tool_version};
use serde::{Deserialize, Serialize};
use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// A clock may be wrong by so many seconds before a job's end time, which is a time of day, is misread.
const SKEW: f64 = 60.0;
/// Bytes that two ranks exchange to see how fast they reach each other.
const EXCHANGED: usize = 8 << 20;
/// What must be free on a node's own disk for copies of inputs to be worth trying.
const SCRATCH: u64 = 1 << 30;

/// What was looked at on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Check {
    host: String,
    check: String,
    passed: bool,
    found: String,
}

/// What a rank knows about its host.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    host: String,
    /// Seconds since 1970, right after all ranks were there.
    wall: f64,
    checks: Vec<Check>,
}

/// The line that rank 0 prints.
#[derive(Debug, Serialize)]
struct Hello {
    hello: Vec<Check>,
}

/// Greets the other ranks, looks at every node once, and prints one line of JSON on rank 0.
///
/// # Errors
/// 78 if the ranks do not find each other; those of the transport.
pub fn print(root: &Path, scratch: Option<&str>) -> Result<()> {
    equipoise_comm::parent::die_with_parent()?;
    let world = world::init()?;
    world.require_size()?;
    runtime::init(&RuntimeConfig { local_rank: world.local_rank(), ..RuntimeConfig::default() })?;
    let comm = world.comm();
    let host = Process::current().host;
    let hosts: Vec<String> = comm
        .all_gather(host.as_bytes())?
        .into_iter()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    let rate = exchange(&world)?;
    // One rank looks at its host for all that are there.
    let first = hosts.iter().position(|other| *other == host) == Some(comm.rank());
    comm.barrier()?;
    let wall = wall(SystemTime::now());
    let checks = if first { node(&host, root, scratch) } else { Vec::new() };
    let seen = serde_json::to_vec(&Seen { host, wall, checks }).or_exit(ExitCode::Bug, "a host as JSON")?;
    let all = comm.all_gather(&seen)?;
    if comm.rank() == 0 {
        let all: Vec<Seen> = all.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
        let mut hello = vec![greeting(&world, &hosts, rate), clocks(&all)];
        hello.extend(all.into_iter().flat_map(|seen| seen.checks));
        println!("{}", serde_json::to_string(&Hello { hello }).or_exit(ExitCode::Bug, "the greeting")?);
    }
    world.finish()
}

/// Neighbours exchange bytes that both know; MB/s, none in a world of one.
fn exchange(world: &World) -> Result<Option<f64>> {
    let comm = world.comm();
    let peer = comm.rank() ^ 1;
    let mut rate = None;
    if peer < comm.size() {
        let pattern = |rank: usize| vec![rank as u8 ^ 0x5a; EXCHANGED];
        let (own, mut received) = (pattern(comm.rank()), vec![0; EXCHANGED]);
        let start = Instant::now();
        comm.exchange(peer, &own, &mut received)?;
        rate = Some(EXCHANGED as f64 / 1e6 / start.elapsed().as_secs_f64());
        ensure!(
            received == pattern(peer),
            Io,
            "rank {} received other bytes than rank {peer} sent",
            comm.rank()
        );
    }
    Ok(rate)
}

fn greeting(world: &World, hosts: &[String], rate: Option<f64>) -> Check {
    let mut names = hosts.to_vec();
    names.dedup();
    let rate = rate.map(|rate| format!(", {rate:.0} MB/s between ranks 0 and 1")).unwrap_or_default();
    let found =
        format!("{} ranks on {} found each other{rate}; {}", hosts.len(), names.join(", "), world.library());
    // A world of one greets nobody.
    Check { host: hosts[0].clone(), check: "MPI hello".into(), passed: hosts.len() > 1, found }
}

fn clocks(all: &[Seen]) -> Check {
    let walls = || all.iter().map(|seen| seen.wall);
    let apart = walls().fold(f64::MIN, f64::max) - walls().fold(f64::MAX, f64::min);
    let found = format!("the clocks of the nodes are at most {apart:.1} s apart");
    let host = all.first().map(|seen| seen.host.clone()).unwrap_or_default();
    Check { host, check: "clocks".into(), passed: apart < SKEW, found }
}

/// Everything about one host.
fn node(host: &str, root: &Path, scratch: Option<&str>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |check: &str, found: Result<String>| {
        let passed = found.is_ok();
        let found = found.unwrap_or_else(|error| error.message().to_string());
        checks.push(Check { host: host.into(), check: check.into(), passed, found });
    };
    let facts = facts::here();
    let part = |of: fn(&Facts) -> Result<String>| match &facts {
        Ok(facts) => of(facts),
        Err(error) => Err(Error::new(error.code(), error.message())),
    };
    add("libtorch", part(|facts| Ok(facts.libtorch())));
    add("GPU", part(|facts| Ok(facts.gpu())));
    add("NCCL", part(Facts::nccl));
    add("HDF5", hdf5(root));
    add("file locks", locks(root));
    add("clock", clock(root));
    if let Some(scratch) = scratch {
        add("scratch", self::scratch(scratch));
    }
    checks
}

/// Removed when it goes out of scope.
struct Temporary(PathBuf);

impl Temporary {
    fn in_folder(folder: &Path, name: &str) -> Self {
        let Process { host, pid, .. } = Process::current();
        Self(folder.join(format!(".equipoise-doctor-{host}-{pid}-{name}")))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = RealFs.remove_file(&self.0);
    }
}

/// A feature file, committed in the folder of runs as any result is, and opened again by its path.
fn hdf5(root: &Path) -> Result<String> {
    let text = |text: &str| text.to_string();
    let file = Features {
        meta: FeatureMeta {
            identity: text("doctor"),
            extractor: text("doctor"),
            weight_hash: text(""),
            layer: text(""),
            preprocessing: text(""),
            split: text("doctor"),
            tool_version: tool_version(),
        },
        features: Matrix::F32(vec![1.0, 2.0]),
        dim: 2,
        label: vec![0],
        group: vec![-1],
        index: vec![0],
        source_xxh3: vec![0],
    };
    let path = Temporary::in_folder(root, "features.h5");
    let start = Instant::now();
    commit_bytes(&RealFs, &path.0, &file.write()?, None)?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    let read = Features::read(&path.0)?;
    ensure!(read.features.to_f32() == [1.0, 2.0], BadData, "{}: other values came back", path.0.display());
    let (major, minor, release) = hdf5_version();
    Ok(format!(
        "{major}.{minor}.{release}; a file is committed in {} in {took:.0} ms and reads back",
        root.display()
    ))
}

/// Nothing here needs locks, but whoever opens the files with h5py may have to be told.
fn locks(root: &Path) -> Result<String> {
    let path = Temporary::in_folder(root, "lock");
    commit_bytes(&RealFs, &path.0, b"lock", None)?;
    let file = std::fs::File::open(&path.0).map_err(|error| Error::io("open", &path.0, error))?;
    Ok(match file.try_lock_shared() {
        Ok(()) => "there are some; files are read without".into(),
        Err(TryLockError::WouldBlock) => "there are some, and this file is locked by another process".into(),
        Err(TryLockError::Error(why)) => {
            format!("none ({why}): files are read without; h5py needs HDF5_USE_FILE_LOCKING=FALSE")
        }
    })
}

/// The time of day here against that of the file system, whose time stamps come from its server.
fn clock(root: &Path) -> Result<String> {
    let path = Temporary::in_folder(root, "clock");
    let before = wall(SystemTime::now());
    commit_bytes(&RealFs, &path.0, b"clock", None)?;
    let after = wall(SystemTime::now());
    let stamp = path.0.metadata().and_then(|found| found.modified());
    let stamp = wall(stamp.map_err(|error| Error::io("look at", &path.0, error))?);
    // Nothing is known about when between the two the file was stamped.
    let skew: f64 = if stamp < before { stamp - before } else { (stamp - after).max(0.0) };
    // The kernel stamps with a clock that ticks some hundred times a second.
    let skew = if skew.abs() < 0.05 { 0.0 } else { skew };
    let found = format!("{skew:+.1} s between the file system of {} and this node", root.display());
    if skew.abs() < SKEW { Ok(found) } else { bail!(CheckFailed, "{found}: set the clock") }
}

fn wall(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The node's own disk: it must be there, writable, and have some room.
fn scratch(text: &str) -> Result<String> {
    let folder = PathBuf::from(expanded(text, |name| std::env::var(name).ok()));
    if !folder.is_dir() {
        bail!(
            Config,
            "slurm.scratch = \"{text}\" is {} here, which is no folder: inputs are not copied",
            folder.display()
        );
    }
    let path = Temporary::in_folder(&folder, "scratch");
    commit_bytes(&RealFs, &path.0, b"scratch", None)?;
    let free =
        RealFs.space(&folder).map_err(|error| Error::io("ask for free space of", &folder, error))?.bytes;
    let found = format!("{} has {:.1} GB free", folder.display(), free as f64 / 1e9);
    if free >= SCRATCH { Ok(found) } else { bail!(NoSpace, "{found}") }
}

/// A leading `$NAME` or `${NAME}` as the batch script expands it (`equipoise_slurm::quote::folder`).
fn expanded(text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, rest) = match text.strip_prefix("${").and_then(|text| text.split_once('}')) {
        Some(parts) => parts,
        None => match text.strip_prefix('$') {
            Some(text) => text.split_at(text.find(|c| !named(c)).unwrap_or(text.len())),
            None => return text.into(),
        },
    };
    if name.is_empty() || !name.chars().all(named) {
        return text.into();
    }
    variable(name).unwrap_or_default() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_is_expanded_as_in_the_script() {
        let value = |name: &str| (name == "TMPDIR").then(|| "/local".to_string());
        for (text, expected) in [
            ("$TMPDIR/x", "/local/x"),
            ("${TMPDIR}x", "/localx"),
            ("$NONE/x", "/x"),
            ("/tmp/$TMPDIR", "/tmp/$TMPDIR"),
        ] {
            assert_eq!(expanded(text, value), expected);
        }
    }

    #[test]
    fn a_folder_is_looked_at_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        assert!(hdf5(folder.path()).unwrap().contains("reads back"));
        assert!(locks(folder.path()).unwrap().starts_with("there are some"));
        assert!(
            clock(folder.path()).unwrap().starts_with('+') || clock(folder.path()).unwrap().starts_with('-')
        );
        assert!(scratch(&folder.path().display().to_string()).is_ok());
        assert!(scratch("$NO_SUCH_VARIABLE/x").unwrap_err().message().contains("which is no folder"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(hdf5(Path::new("/proc")).unwrap_err().code(), ExitCode::Io);
    }

    #[test]
    fn clocks_that_are_apart_fail() {
        let seen = |wall| Seen { host: "n".into(), wall, checks: vec![] };
        assert!(clocks(&[seen(1000.0), seen(1001.0)]).passed);
        assert!(!clocks(&[seen(1000.0), seen(1100.0)]).passed);
    }
}
