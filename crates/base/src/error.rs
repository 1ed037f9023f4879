//! The user-facing error: one line, an exit code, and the next command to type.
//!
//! Two tiers (docs/design/errors.md). What a user or an environment did wrong is an [`Error`]; what we did wrong
//! panics, prints a backtrace and exits 101.

use crate::ExitCode;
use std::fmt;
use std::path::Path;

/// Result of anything that a user or the environment can make fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A user or environment error.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: ExitCode,
    message: String,
    next: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with its exit code. The message names the file (or key, rank, job) it is about.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { code, message: message.into(), next: None, source: None }))
    }

    /// A failed operation on `path`; out of space is told apart from other I/O errors by its message only.
    pub fn io(operation: &str, path: &Path, source: std::io::Error) -> Self {
        let message = format!("{}: cannot {operation}: {source}", path.display());
        Self(Box::new(Inner { code: ExitCode::Io, message, next: None, source: Some(Box::new(source)) }))
    }

    /// Input data that cannot be used.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadData, message)
    }

    /// A configuration that cannot be used.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Config, message)
    }

    /// Adds the command to type next.
    #[must_use]
    pub fn next(mut self, command: impl Into<String>) -> Self {
        self.0.next = Some(command.into());
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts what was being done in front of the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.0.message = format!("{doing}: {}", self.0.message);
        self
    }

    /// Exit code of a process that ends with this error.
    pub fn code(&self) -> ExitCode {
        self.0.code
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The command to type next, if there is one.
    pub fn next_command(&self) -> Option<&str> {
        self.0.next.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.next {
            Some(next) => write!(f, " (next: {next})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Turns foreign errors into [`Error`]s where they occur.
pub trait ResultExt<T> {
    /// Gives a foreign error its exit code and says what was being done.
    fn or_exit(self, code: ExitCode, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> ResultExt<T> for std::result::Result<T, E> {
    fn or_exit(self, code: ExitCode, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|source| Error::new(code, format!("{doing}: {source}")).caused_by(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_the_next_command() {
        let error = Error::data("a.h5: truncated").context("prepare").next("equipoise resume RUN");
        assert_eq!(error.to_string(), "prepare: a.h5: truncated (next: equipoise resume RUN)");
        assert_eq!(error.code(), ExitCode::BadData);
    }
}
