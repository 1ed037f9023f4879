//! Running Slurm's commands: with a time limit, in plain English, and telling a refusal from a hiccup.

use equipoise_base::{Error, ExitCode};
use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Slurm's own timeouts are ten seconds or so, and it tries again a few times.
const LIMIT: Duration = Duration::from_secs(60);

/// Why a command brought no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no such command: this machine has no Slurm.
    Missing(String),
    /// The controller was busy, away or out of step: whether the request was carried out is unknown.
    Hiccup(String),
    /// Slurm understood and refused.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Missing(text) | Failure::Hiccup(text) | Failure::Refused(text) => f.write_str(text),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Missing(_) => Error::config(message).next("equipoise run RECIPE"),
            Failure::Hiccup(_) => Error::new(ExitCode::Io, message).next("type the same command again later"),
            Failure::Refused(_) => Error::config(message),
        }
    }
}

/// What these say passes by itself. In messages of all versions from 20 to 25.
const HICCUPS: [&str; 13] = [
    "timed out",
    "Unable to contact slurm controller",
    "Unexpected message received",
    "Unexpected msg type",
    "Connection refused",
    "Connection reset",
    "Zero Bytes were transmitted or received",
    "Communication connection failure",
    "Resource temporarily unavailable",
    "temporarily unable to accept job",
    "Transport endpoint is not connected",
    "in standby mode",
    "Slurm backup controller",
];

/// Text of commands that found no such job.
pub fn says_unknown_job(text: &str) -> bool {
    text.contains("Invalid job id")
}

/// Starts Slurm's commands.
#[derive(Clone, Debug)]
pub struct Commands {
    limit: Duration,
}

impl Default for Commands {
    fn default() -> Self {
        Self { limit: LIMIT }
    }
}

/// What a command that ended printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Commands {
    /// With another limit than that of Slurm's own commands.
    pub fn within(limit: Duration) -> Self {
        Self { limit }
    }

    /// Runs one command.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn run(&self, program: &str, args: &[impl AsRef<OsStr>]) -> Result<Answer, Failure> {
        let mut command = Command::new(program);
        command.args(args);
        self.finish(program, command, None)
    }

    /// sbatch, in `dir`, without the variables of a job that this one may be run from.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn sbatch(&self, dir: &Path, args: &[impl AsRef<OsStr>]) -> Result<Answer, Failure> {
        let mut command = Command::new("sbatch");
        command.args(args).current_dir(dir);
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in crate::environment::leaking(names) {
            command.env_remove(name);
        }
        self.finish("sbatch", command, None)
    }

    /// `sbatch --test-only` of a script that is in no file.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn test_only(&self, script: &str) -> Result<Answer, Failure> {
        let mut command = Command::new("sbatch");
        command.arg("--test-only");
        self.finish("sbatch", command, Some(script))
    }

    fn finish(&self, program: &str, mut command: Command, input: Option<&str>) -> Result<Answer, Failure> {
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // Times and words of the answer must not depend on the user's language.
        command.env("LC_ALL", "C").env_remove("SLURM_TIME_FORMAT").env_remove("SQUEUE_FORMAT");
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::Missing(format!("{program}: there is no such command here"))
            }
            _ => Failure::Hiccup(format!("{program}: {error}")),
        })?;
        let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // A command that does not read it says why by its status.
            let _ = pipe.write_all(input.as_bytes());
        }
        let status = match self.wait(&mut child) {
            Some(status) => status,
            None => {
                let _ = child.kill();
                let _ = child.wait();
                let seconds = self.limit.as_secs();
                return Err(Failure::Hiccup(format!("{program}: timed out: no answer within {seconds} s")));
            }
        };
        let answer = Answer { out: joined(out), err: joined(err) };
        if status.success() {
            return Ok(answer);
        }
        let said = first_line(&answer.err).or(first_line(&answer.out)).unwrap_or("it says nothing");
        let message = if said.starts_with(program) { said.into() } else { format!("{program}: {said}") };
        let passes = HICCUPS.iter().any(|hiccup| answer.err.contains(hiccup) || answer.out.contains(hiccup));
        Err(if passes { Failure::Hiccup(message) } else { Failure::Refused(message) })
    }

    fn wait(&self, child: &mut Child) -> Option<ExitStatus> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < self.limit => std::thread::sleep(pause),
                Ok(None) | Err(_) => return None,
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// A pipe that nobody empties would block the command.
fn reader(pipe: Option<impl std::io::Read + Send + 'static>) -> Option<JoinHandle<Vec<u8>>> {
    pipe.map(|mut pipe| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    })
}

fn joined(reader: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first line that says something. Slurm repeats itself.
fn first_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Answer, Failure> {
        Commands { limit: Duration::from_millis(300) }.run("sh", &["-c", script])
    }

    #[test]
    fn hiccups_refusals_and_answers() {
        assert_eq!(
            shell("echo 12; echo note >&2").unwrap(),
            Answer { out: "12\n".into(), err: "note\n".into() }
        );
        let refused = shell("echo 'sbatch: error: invalid partition specified: x' >&2; exit 1").unwrap_err();
        assert_eq!(refused, Failure::Refused("sh: sbatch: error: invalid partition specified: x".into()));
        let text = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation";
        let hiccup = shell(&format!("echo '{text}' >&2; exit 1")).unwrap_err();
        assert!(matches!(hiccup, Failure::Hiccup(_)), "{hiccup:?}");
        assert!(matches!(Commands::default().run("no-such-command", &[""; 0]), Err(Failure::Missing(_))));
        assert_eq!(Error::from(refused).code(), ExitCode::Config);
    }

    #[test]
    fn a_command_that_hangs_is_given_up() {
        let start = Instant::now();
        assert!(matches!(shell("exec sleep 30"), Err(Failure::Hiccup(_))));
        assert!(start.elapsed() < Duration::from_secs(25));
    }

    #[test]
    fn much_output_does_not_block() {
        let answer = Commands::default().run("sh", &["-c", "head -c 1000000 /dev/zero"]).unwrap();
        assert_eq!(answer.out.len(), 1_000_000);
    }
}
