//! Claims of array jobs: tasks that share nothing but a directory.

use crate::{Claim, Claims, StopFlag};
use equipoise_base::Result;
use std::collections::HashSet;
use std::sync::Mutex;

/// A directory of empty marker files, one per attempt of one stage; `rundir` implements it.
pub trait ExclusiveFiles: Send + Sync {
    /// Creates the file; false if it exists. Exactly one of several concurrent callers gets true.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_exclusive(&self, name: &str) -> Result<bool>;

    /// Names of all files.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self) -> Result<Vec<String>>;
}

/// Claims one task's units by creating files.
///
/// A task first claims its own share (every `tasks`-th unit from its own index), then what is left of the others':
/// tasks touch each other's files only at the end, so a run costs about one create per unit.
pub struct ClaimFiles<F> {
    files: F,
    stop: StopFlag,
    scan: Mutex<Scan>,
}

struct Scan {
    /// Units still to try, the next one last.
    candidates: Vec<usize>,
    /// How many of them, at the front, are other tasks' share.
    others: usize,
    listed: bool,
}

impl<F: ExclusiveFiles> ClaimFiles<F> {
    /// Claims among `units` (largest first) as task `task` of `tasks`. All tasks of an attempt give the same units in
    /// the same order.
    pub fn new(files: F, units: &[usize], task: usize, tasks: usize, stop: StopFlag) -> Self {
        let tasks = tasks.max(1);
        let (own, others): (Vec<_>, Vec<_>) =
            units.iter().copied().enumerate().partition(|(position, _)| position % tasks == task % tasks);
        let reversed = others.iter().rev().chain(own.iter().rev()).map(|(_, unit)| *unit);
        let scan = Scan { candidates: reversed.collect(), others: others.len(), listed: false };
        Self { files, stop, scan: Mutex::new(scan) }
    }

    /// Name of the claim file of a unit.
    pub fn file_name(unit: usize) -> String {
        format!("unit-{unit:08}")
    }
}

impl<F: ExclusiveFiles> Claims for ClaimFiles<F> {
    fn next(&self) -> Result<Claim> {
        let mut scan = self.scan.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        loop {
            if self.stop.is_raised() {
                return Ok(Claim::Stop);
            }
            if scan.candidates.len() <= scan.others && !scan.listed {
                // One listing spares a failing create per unit that the others have claimed by now.
                let taken: HashSet<String> = self.files.list()?.into_iter().collect();
                scan.candidates.retain(|&unit| !taken.contains(&Self::file_name(unit)));
                scan.listed = true;
            }
            let Some(unit) = scan.candidates.pop() else { return Ok(Claim::Done) };
            if self.files.create_exclusive(&Self::file_name(unit))? {
                return Ok(Claim::Unit(unit));
            }
        }
    }

    fn finished(&self, _unit: usize) -> Result<()> {
        Ok(())
    }

    fn should_stop(&self) -> Result<bool> {
        Ok(self.stop.is_raised())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use equipoise_base::Error;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Directory {
        path: PathBuf,
        creates: AtomicUsize,
    }

    impl ExclusiveFiles for &Directory {
        fn create_exclusive(&self, name: &str) -> Result<bool> {
            self.creates.fetch_add(1, Ordering::Relaxed);
            let path = self.path.join(name);
            match std::fs::File::create_new(&path) {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(Error::io("create", &path, error)),
            }
        }

        fn list(&self) -> Result<Vec<String>> {
            let entries = std::fs::read_dir(&self.path).unwrap();
            Ok(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        }
    }

    #[test]
    fn every_unit_once_and_few_failing_creates() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory { path: folder.path().into(), creates: AtomicUsize::new(0) };
        let units: Vec<usize> = (0..400).rev().collect();
        let mut taken: Vec<usize> = std::thread::scope(|scope| {
            let task = |task| {
                let claims = ClaimFiles::new(&directory, &units, task, 4, StopFlag::default());
                std::iter::from_fn(move || match claims.next().unwrap() {
                    Claim::Unit(unit) => Some(unit),
                    Claim::Done | Claim::Stop => None,
                })
                .collect::<Vec<_>>()
            };
            let handles: Vec<_> = (0..4).map(|index| scope.spawn(move || task(index))).collect();
            handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect()
        });
        taken.sort_unstable();
        assert!(taken.iter().copied().eq(0..400));
        let creates = directory.creates.load(Ordering::Relaxed);
        assert!(creates <= 1200, "{creates} creates for 400 units");
    }

    #[test]
    fn own_share_first_then_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory { path: folder.path().into(), creates: AtomicUsize::new(0) };
        let claims = ClaimFiles::new(&directory, &[9, 8, 7, 6], 1, 2, StopFlag::default());
        let order: Vec<Claim> = (0..5).map(|_| claims.next().unwrap()).collect();
        assert_eq!(order, [Claim::Unit(8), Claim::Unit(6), Claim::Unit(9), Claim::Unit(7), Claim::Done]);
        let late = ClaimFiles::new(&directory, &[9, 8, 7, 6], 0, 2, StopFlag::default());
        assert_eq!(late.next().unwrap(), Claim::Done);
    }
}
