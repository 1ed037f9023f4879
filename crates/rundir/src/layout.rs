//! Names of everything in a run directory. No job id and no date is in any of them: the same command finds them again.
//!
//! ```text
//! config.toml  identity.json  slurm/  report.html
//! stages/<stage>[.<arm>][.k<set>][.s<seed>|.d<draw>]/
//!     lock/  identity.json  journal.jsonl  metrics.jsonl  outcome.json  status.json
//!     ckpt/step-00012345/  logs/<attempt>/rank-0000.log  work/<attempt>/rank-0000.jsonl  .parts/
//!     tasks/<task>/{journal.jsonl,outcome.json,status.json,logs/,work/}  claims/<attempt>/
//! sets/<set>/<class>/  sets/<set>/<class>/.parts/
//! features/<extractor>/<split>.h5
//! ```

use crate::vfs::Vfs;
use equipoise_base::{Error, Result, ensure};
use std::fmt;
use std::path::{Path, PathBuf};

/// Longest name that leaves room for what a scratch name adds.
const MAX_NAME: usize = 200;

/// Refuses names that would leave their directory, be hidden or be too long. Any other character is fine: paths are
/// never given to a shell unquoted.
///
/// # Errors
/// 78 naming the name and `what` it is of.
pub fn checked_name<'a>(what: &str, name: &'a str) -> Result<&'a str> {
    let fits = !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.');
    ensure!(
        fits && !name.contains(['/', '\0']),
        Config,
        "{name:?} cannot name a {what}: it must have 1 to {MAX_NAME} bytes, no '/', and not begin with '.'"
    );
    Ok(name)
}

/// Which stage of a run: `<stage>[.<arm>][.k<set>][.s<seed>|.d<draw>]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StageKey {
    stage: String,
    arm: Option<String>,
    set: Option<u32>,
    seed: Option<u64>,
    draw: Option<u64>,
}

/// Letters that stand before a number: of a set, a seed, a draw.
const NUMBERED: [char; 3] = ['k', 's', 'd'];

impl StageKey {
    /// A stage without arm, set or seed.
    ///
    /// # Errors
    /// 78 if the name cannot be part of a directory name.
    pub fn new(stage: &str) -> Result<Self> {
        Ok(Self { stage: part("stage", stage)?, arm: None, set: None, seed: None, draw: None })
    }

    /// One arm of a comparison: a method, an ablation.
    ///
    /// # Errors
    /// 78 if the name cannot be part of a directory name, or reads as a set, a seed or a draw.
    pub fn arm(mut self, arm: &str) -> Result<Self> {
        ensure!(
            is_name(arm),
            Config,
            "{arm:?} cannot name an arm: k, s and d with a number stand for a set, a seed and a draw"
        );
        self.arm = Some(part("arm", arm)?);
        Ok(self)
    }

    /// The number of a synthetic set.
    #[must_use]
    pub fn set(mut self, set: u32) -> Self {
        self.set = Some(set);
        self
    }

    /// A training seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// A draw of a random search, instead of a seed.
    #[must_use]
    pub fn draw(mut self, draw: u64) -> Self {
        self.draw = Some(draw);
        self
    }

    /// Name of the stage.
    pub fn stage(&self) -> &str {
        &self.stage
    }

    /// The key that displays as `name`, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('.').peekable();
        let mut key = Self::new(parts.next()?).ok()?;
        if let Some(arm) = parts.next_if(|part| is_name(part)) {
            key = key.arm(arm).ok()?;
        }
        if let Some(set) = parts.peek().and_then(|part| numbered(part, 'k')) {
            key = key.set(u32::try_from(set).ok()?);
            parts.next();
        }
        if let Some(seed) = parts.peek().and_then(|part| numbered(part, 's')) {
            key = key.seed(seed);
            parts.next();
        } else if let Some(draw) = parts.peek().and_then(|part| numbered(part, 'd')) {
            key = key.draw(draw);
            parts.next();
        }
        (parts.next().is_none() && key.to_string() == name).then_some(key)
    }
}

/// Dots separate the parts of a key.
fn part(what: &str, name: &str) -> Result<String> {
    ensure!(!name.contains('.'), Config, "{name:?} cannot name a {what}: it must not contain '.'");
    checked_name(what, name).map(str::to_string)
}

fn numbered(part: &str, letter: char) -> Option<u64> {
    let digits = part.strip_prefix(letter)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Whether a part of a key is no number of something.
fn is_name(part: &str) -> bool {
    NUMBERED.iter().all(|&letter| numbered(part, letter).is_none())
}

impl fmt::Display for StageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stage)?;
        if let Some(arm) = &self.arm {
            write!(f, ".{arm}")?;
        }
        if let Some(set) = self.set {
            write!(f, ".k{set}")?;
        }
        if let Some(seed) = self.seed {
            write!(f, ".s{seed}")?;
        }
        if let Some(draw) = self.draw {
            write!(f, ".d{draw}")?;
        }
        Ok(())
    }
}

/// A run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The run directory at `root`; nothing is created.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The identity of the run.
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity.json")
    }

    /// Batch scripts and what they print before a stage opens.
    pub fn slurm(&self) -> PathBuf {
        self.root.join("slurm")
    }

    /// The report.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// One stage.
    pub fn stage(&self, key: &StageKey) -> StageDir {
        StageDir { root: self.root.join("stages").join(key.to_string()), key: key.clone() }
    }

    /// The stages that were begun, by name.
    ///
    /// # Errors
    /// 74 if the directory cannot be listed.
    pub fn stages(&self, vfs: &dyn Vfs) -> Result<Vec<StageDir>> {
        let dir = self.root.join("stages");
        let entries = vfs.list_if_exists(&dir).map_err(|error| Error::io("list", &dir, error))?;
        let keys =
            entries.iter().filter(|entry| entry.is_dir).filter_map(|entry| StageKey::parse(&entry.name));
        Ok(keys.map(|key| self.stage(&key)).collect())
    }

    /// The shards of one class of a set.
    ///
    /// # Errors
    /// 78 if a name cannot be a directory.
    pub fn set_class(&self, set: &str, class: &str) -> Result<PathBuf> {
        let set = self.root.join("sets").join(checked_name("set", set)?);
        Ok(set.join(checked_name("class", class)?))
    }

    /// Finished batches of unfinished shards of one class of a set.
    ///
    /// # Errors
    /// 78 if a name cannot be a directory.
    pub fn set_parts(&self, set: &str, class: &str) -> Result<PathBuf> {
        Ok(self.set_class(set, class)?.join(PARTS))
    }

    /// The features of a split.
    ///
    /// # Errors
    /// 78 if a name cannot be a directory.
    pub fn features(&self, extractor: &str, split: &str) -> Result<PathBuf> {
        let dir = self.root.join("features").join(checked_name("feature extractor", extractor)?);
        Ok(dir.join(format!("{}.h5", checked_name("split", split)?)))
    }
}

const PARTS: &str = ".parts";
const TASKS: &str = "tasks";

/// The directory of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageDir {
    root: PathBuf,
    key: StageKey,
}

impl StageDir {
    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Which stage it is.
    pub fn key(&self) -> &StageKey {
        &self.key
    }

    /// The lease.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The sub-lease of a chunk of an array job.
    ///
    /// # Errors
    /// 78 if the name cannot be a directory.
    pub fn chunk_lock(&self, chunk: &str) -> Result<PathBuf> {
        Ok(self.lock().join("chunks").join(checked_name("chunk", chunk)?))
    }

    /// The identity of the stage.
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity.json")
    }

    /// What happened, one line per event.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal.jsonl")
    }

    /// What one task of an array job writes about itself, named as in a stage: its journal, outcome, status and logs.
    /// Tasks end in any order, and a journal has one writer.
    #[must_use]
    pub fn task(&self, task: u64) -> Self {
        Self { root: self.root.join(TASKS).join(task.to_string()), key: self.key.clone() }
    }

    /// The folder of all tasks of an array job.
    pub fn tasks(&self) -> PathBuf {
        self.root.join(TASKS)
    }

    /// What the tasks of an array job have claimed, by attempt.
    pub fn claims(&self) -> PathBuf {
        self.root.join("claims")
    }

    /// Measurements, one line per step or interval.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// How the last attempt ended.
    pub fn outcome(&self) -> PathBuf {
        self.root.join("outcome.json")
    }

    /// How far it is.
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    /// Checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("ckpt")
    }

    /// The log of one rank of one attempt.
    pub fn log(&self, attempt: u64, rank: usize) -> PathBuf {
        self.root.join("logs").join(attempt.to_string()).join(format!("rank-{rank:04}.log"))
    }

    /// How long finished units took, by attempt: see [`work`](crate::work).
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// What one rank of one attempt has finished.
    pub fn work_of(&self, attempt: u64, rank: usize) -> PathBuf {
        self.work().join(attempt.to_string()).join(format!("rank-{rank:04}.jsonl"))
    }

    /// Finished parts of unfinished results of the stage.
    pub fn parts(&self) -> PathBuf {
        self.root.join(PARTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultFs;

    #[test]
    fn keys_are_read_back_from_their_names() {
        let train = StageKey::new("train-f").unwrap();
        let keys = [
            ("train-f", train.clone()),
            ("train-f.loss", train.clone().arm("loss").unwrap()),
            ("train-f.k2", train.clone().set(2)),
            ("train-f.loss.k2.d11", train.clone().arm("loss").unwrap().set(2).draw(11)),
            (
                "train-f.no guidance.k0.s18446744073709551615",
                train.arm("no guidance").unwrap().set(0).seed(u64::MAX),
            ),
        ];
        for (name, key) in keys {
            assert_eq!(key.to_string(), name);
            assert_eq!(StageKey::parse(name), Some(key));
        }
        for name in
            ["", ".x", "a.s1.k1", "a.b.c", "a.k01", "a.k1.k2", "a.k4294967296", "a..s1", "a.d1.s1", "a.s1.d1"]
        {
            assert_eq!(StageKey::parse(name), None, "{name}");
        }
    }

    #[test]
    fn names_cannot_leave_the_run_directory() {
        let run = RunDir::new("/run");
        for name in ["", ".", "..", "a/b", ".hidden", "a\0b", &"x".repeat(201)] {
            assert!(run.set_class(name, "0").is_err(), "{name:?}");
            assert!(run.set_class("g", name).is_err(), "{name:?}");
            assert!(StageKey::new(name).is_err(), "{name:?}");
        }
        for name in ["a b", "a'; echo foo", "$(x)", "-rf", "a\nb", "ü"] {
            assert!(run.features(name, "train").unwrap().starts_with("/run/features"), "{name:?}");
        }
        assert!(StageKey::new("a").unwrap().arm("k1").is_err() && StageKey::new("a.b").is_err());
    }

    #[test]
    fn stages_are_listed_by_key() {
        let (fs, run) = (FaultFs::new(), RunDir::new("/run"));
        assert!(run.stages(&fs).unwrap().is_empty());
        for dir in
            ["/run", "/run/stages", "/run/stages/generate.k1", "/run/stages/a.b.c.d", "/run/stages/train"]
        {
            fs.create_dir(Path::new(dir)).unwrap();
        }
        let names: Vec<String> =
            run.stages(&fs).unwrap().iter().map(|stage| stage.key().to_string()).collect();
        assert_eq!(names, ["generate.k1", "train"]);
    }
}
