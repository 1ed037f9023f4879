//! What people and scripts see.

use clap::ValueEnum;
use equipoise_base::Error;
use serde::Serialize;
use std::io::{self, Write};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For scripts.
    Json,
}

/// Writes a line to standard output; a reader that has gone (`| head`) is no error.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout(), "{}", text.as_ref());
}

/// Writes a value as one line of JSON.
pub fn json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        line(text);
    }
}

/// Writes an error to standard error, in one line.
pub fn error(error: &Error) {
    let _ = writeln!(io::stderr(), "error: {error}");
}

/// `1 shard`, `2 shards`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
