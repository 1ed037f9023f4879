//! sbatch, so that a request that timed out after it was carried out never makes a second job (F27).
//!
//! Each submission has a name of its own. After a hiccup the job is looked for by that name before anything is repeated.

use crate::commands::{Commands, Failure};
use crate::query;
use equipoise_base::clock::Clock;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// Pauses before another try, in seconds.
const PAUSES: [u64; 8] = [1, 2, 4, 8, 15, 30, 60, 60];

/// What is to be submitted.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// Working directory: the run.
    pub dir: &'a Path,
    /// Script, from there.
    pub script: &'a str,
    /// The name that no other submission has.
    pub name: &'a str,
    /// Ids of the jobs that must end well before.
    pub after: &'a [String],
}

impl Order<'_> {
    fn args(&self) -> Vec<OsString> {
        let mut args = vec!["--parsable".to_string(), format!("--job-name={}", self.name)];
        if !self.after.is_empty() {
            args.push(format!("--dependency=afterok:{}", self.after.join(":")));
            // Otherwise it would wait for ever once one of them has failed.
            args.push("--kill-on-invalid-dep=yes".into());
        }
        args.push(self.script.into());
        args.into_iter().map(OsString::from).collect()
    }
}

/// Submits a job; returns its id. `say` is told of every try that failed.
///
/// # Errors
/// A refusal, or the last hiccup when it does not pass; then whether there is a job is unknown, and
/// [`existing`] will find it.
pub fn submit(
    commands: &Commands,
    order: &Order<'_>,
    clock: &dyn Clock,
    say: &dyn Fn(&str),
) -> Result<String, Failure> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let failure = match commands.sbatch(order.dir, &order.args()) {
            Ok(answer) => match id(&answer.out) {
                Some(id) => return Ok(id),
                None => Failure::Hiccup(format!("sbatch: no job id in its answer '{}'", answer.out.trim())),
            },
            Err(failure) => failure,
        };
        if !matches!(failure, Failure::Hiccup(_)) {
            return Err(failure);
        }
        // The request may still be under way to the controller: it is looked for after a pause, too.
        loop {
            let looked = existing(commands, order.name);
            if let Ok(Some(id)) = looked {
                return Ok(id);
            }
            let Some(seconds) = pauses.next() else { return Err(failure) };
            say(&format!("{failure}; trying again in {seconds} s"));
            clock.sleep(Duration::from_secs(seconds));
            if looked.is_ok() {
                break;
            }
        }
        if let Ok(Some(id)) = existing(commands, order.name) {
            return Ok(id);
        }
    }
}

/// The job of this name, if Slurm has one.
///
/// # Errors
/// If Slurm gives no answer.
pub fn existing(commands: &Commands, name: &str) -> Result<Option<String>, Failure> {
    Ok(query::named(commands, name)?.into_iter().map(|row| row.job).next())
}

/// The id in the answer of `sbatch --parsable`: `id` or `id;cluster`, perhaps after notes of the site.
fn id(out: &str) -> Option<String> {
    let mut ids = out.lines().filter_map(|line| {
        let id = line.trim().split(';').next()?;
        (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())).then(|| id.to_string())
    });
    ids.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_as_sbatch_prints_them() {
        for (out, expected) in [
            ("41\n", Some("41")),
            ("41;cluster\n", Some("41")),
            ("Welcome to the cluster!\n41\n", Some("41")),
            ("", None),
            ("Submitted\n", None),
        ] {
            assert_eq!(id(out).as_deref(), expected, "{out:?}");
        }
    }

    #[test]
    fn dependencies_end_with_the_chain() {
        let after = ["1".to_string(), "2".to_string()];
        let order = Order { dir: Path::new("/run"), script: "slurm/x.sh", name: "r.x-1", after: &after };
        let expected =
            "--parsable --job-name=r.x-1 --dependency=afterok:1:2 --kill-on-invalid-dep=yes slurm/x.sh";
        assert_eq!(order.args().join(std::ffi::OsStr::new(" ")), expected);
        assert_eq!(Order { after: &[], ..order }.args().len(), 3);
    }
}
