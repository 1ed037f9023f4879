//! The launcher: starts the ranks of one step on this machine, passes a stop on, and leaves nothing behind.
//!
//! The ranks run in a session of their own, so that a Ctrl-C of the terminal reaches only the launcher. mpirun kills
//! its ranks 2 s after a TERM or INT, too soon for any commit; it forwards USR2. So INT, TERM, HUP and USR2 become
//! USR2, repeated until the step ends (the first one may come before the step listens, which ignores it till then). A
//! second INT means now: the session gets SIGKILL. Slurm repeats TERM on its own account, so a second TERM means nothing new.
//!
//! If the launcher itself gets SIGKILL the kernel kills mpirun with it, and the ranks with mpirun
//! ([`die_with_parent`](crate::parent::die_with_parent)).

use crate::environment::Variable;
use crate::mpirun::Flavour;
use crate::{parent, session};
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Between two USR2 of a stop.
const REPEAT_STOP: Duration = Duration::from_secs(2);

/// How long a killed session may take to go.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// Where the ranks' stdout and stderr go.
#[derive(Debug, Default)]
pub enum Output {
    /// To the launcher's own.
    #[default]
    Inherit,
    /// To this file, opened for appending by the caller.
    File(File),
}

/// One step to start.
#[derive(Debug)]
pub struct Launch {
    /// Step binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Number of ranks.
    pub ranks: usize,
    /// `mpirun` to start them with; none to start the binary itself, which is then a world of one.
    pub mpirun: Option<PathBuf>,
    /// Variables set for every rank: see [`environment::pinned`](crate::environment::pinned).
    pub environment: Vec<Variable>,
    /// Where stdout and stderr go.
    pub output: Output,
}

/// What the launcher did to the step before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// To commit and end.
    Stop,
    /// Killed at the second INT.
    Abort,
}

/// How the step ended. The caller reads `outcome.json` first: mpirun's own status can hide a rank's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit status, if it exited.
    pub status: Option<i32>,
    /// Signal that killed it, if one did.
    pub signal: Option<i32>,
    /// What it was asked. A step that was asked to stop and left no outcome was hit before it could listen: nothing
    /// was begun, so nothing is lost.
    pub asked: Asked,
}

/// Starts steps one after the other and keeps the signals that come in between.
#[derive(Debug)]
pub struct Launcher {
    signals: Signals,
    asked: Asked,
    interrupts: u32,
}

impl Launcher {
    /// Takes over INT, TERM, HUP and USR2 for the rest of this process.
    ///
    /// # Errors
    /// I/O if the system refuses a handler.
    pub fn new() -> Result<Self> {
        let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR2])
            .or_exit(ExitCode::Io, "launcher: cannot handle signals")?;
        Ok(Self { signals, asked: Asked::Nothing, interrupts: 0 })
    }

    /// What the signals so far ask for: start no further step unless it is [`Asked::Nothing`].
    pub fn asked(&mut self) -> Asked {
        for signal in self.signals.pending() {
            self.interrupts += u32::from(signal == SIGINT);
            let asked = if self.interrupts > 1 { Asked::Abort } else { Asked::Stop };
            self.asked = self.asked.max(asked);
        }
        self.asked
    }

    /// Runs one step to its end. Call it on the main thread: the kernel kills the step when the *thread* that started
    /// it ends.
    ///
    /// # Errors
    /// Configuration: the binary or mpirun is missing, or several ranks are asked for without mpirun.
    /// I/O: the system refuses a process.
    pub fn run(&mut self, launch: Launch) -> Result<Ended> {
        let mut step = Step { child: launch.spawn()?, told: None };
        while !step.has_ended()? {
            match self.asked() {
                Asked::Nothing => {}
                Asked::Stop => step.tell_to_stop(),
                Asked::Abort => break,
            }
            std::thread::sleep(POLL);
        }
        let status = step.reap()?;
        Ok(Ended { status: status.code(), signal: status.signal(), asked: self.asked() })
    }
}

impl Launch {
    fn spawn(self) -> Result<Child> {
        let (executable, args) = match &self.mpirun {
            Some(mpirun) => {
                let flavour = Flavour::detect(mpirun)?;
                (mpirun, flavour.arguments(self.ranks, &self.environment, &self.program, &self.args))
            }
            None if self.ranks == 1 => (&self.program, self.args),
            None => {
                let message =
                    format!("{} ranks need an mpirun; load an MPI module or use one rank", self.ranks);
                return Err(Error::config(message).next("equipoise doctor"));
            }
        };
        let mut command = Command::new(executable);
        command.args(args).envs(self.environment).stdin(Stdio::null());
        if let Output::File(file) = self.output {
            let copy = file.try_clone().or_exit(ExitCode::Io, "launcher: cannot duplicate the log file")?;
            command.stdout(file).stderr(copy);
        }
        // SAFETY: getpid has no preconditions.
        let launcher = unsafe { libc::getpid() };
        // SAFETY: the closure makes async-signal-safe calls only and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                // Ignored until the step listens, and again once mpirun has taken its handler away: USR2 would kill it.
                if libc::setsid() < 0 || libc::signal(SIGUSR2, libc::SIG_IGN) == libc::SIG_ERR {
                    return Err(std::io::Error::last_os_error());
                }
                parent::die_with(launcher)
            });
        }
        command.spawn().map_err(|error| {
            let code =
                if error.kind() == std::io::ErrorKind::NotFound { ExitCode::Config } else { ExitCode::Io };
            Error::new(code, format!("{}: cannot start it: {error}", executable.display()))
        })
    }
}

/// A running step.
struct Step {
    child: Child,
    /// When USR2 was last sent.
    told: Option<Instant>,
}

impl Step {
    fn pid(&self) -> libc::pid_t {
        self.child.id() as libc::pid_t
    }

    /// Looks without reaping.
    fn has_ended(&self) -> Result<bool> {
        // SAFETY: a zeroed siginfo_t is valid, and waitid only writes to it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: as above.
        let outcome = unsafe { libc::waitid(libc::P_PID, self.child.id(), &mut info, options) };
        if outcome != 0 {
            let error = std::io::Error::last_os_error();
            return Err(Error::new(ExitCode::Io, format!("launcher: cannot wait for the step: {error}")));
        }
        // SAFETY: waitid filled this field or left it zero.
        Ok(unsafe { info.si_pid() } != 0)
    }

    fn tell_to_stop(&mut self) {
        if self.told.is_none_or(|told| told.elapsed() > REPEAT_STOP) {
            // SAFETY: kill has no memory preconditions; the child is not reaped yet.
            unsafe { libc::kill(self.pid(), SIGUSR2) };
            self.told = Some(Instant::now());
        }
    }

    /// Ends what is left of the session, then takes the exit status.
    fn reap(mut self) -> Result<ExitStatus> {
        // Before the child is reaped its pid, which names the session, cannot be given to another process.
        if !session::kill(self.pid(), KILL_BOUND) {
            eprintln!(
                "launcher: processes of the step are still there after SIGKILL (session {})",
                self.pid()
            );
        }
        self.child.wait().or_exit(ExitCode::Io, "launcher: cannot wait for the step")
    }
}
