//! What people and scripts see: text with colours on a terminal only, or JSON.

use crate::commands::Command;
use clap::ValueEnum;
use equipoise_base::Error;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For scripts.
    Json,
}

/// `equipoise status RUN | head` ends quietly, as other programs do. A run goes on without its reader.
pub fn let_pipes_close(command: &Command) {
    if !command.starts_steps() {
        // SAFETY: called from the only thread, before any output; SIG_DFL is a valid disposition.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
}

/// Writes a line to standard output; a reader that has gone is no error.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout(), "{}", text.as_ref());
}

/// Writes a value as one line of JSON.
pub fn json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        line(text);
    }
}

/// Writes an error to standard error: one line, or one line per problem of a configuration.
pub fn error(error: &Error) {
    let label = if io::stderr().is_terminal() { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    let _ = writeln!(io::stderr(), "{label} {error}");
}

/// Colours, by meaning.
#[derive(Clone, Copy)]
pub enum Colour {
    /// Went well.
    Good,
    /// Went wrong.
    Bad,
    /// Needs a look.
    Attention,
    /// Less important.
    Faint,
}

/// `text` in a colour, if standard output is a terminal.
pub fn coloured(text: &str, colour: Colour) -> String {
    if !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return text.to_string();
    }
    let code = match colour {
        Colour::Good => "32",
        Colour::Bad => "31",
        Colour::Attention => "33",
        Colour::Faint => "2",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Columns of text, each as wide as its widest cell; `right` are the columns aligned to the right.
pub fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| shown_width(cell));
        cells.chain(header.get(column).map(|cell| shown_width(cell))).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let layout = |cells: &[&str]| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let padding = " ".repeat(widths[column].saturating_sub(shown_width(cell)));
            if right.contains(&column) { padding + cell } else { format!("{cell}{padding}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    line(coloured(&layout(header), Colour::Faint));
    for row in rows {
        line(layout(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
}

/// Characters that a terminal shows: colours have no width.
fn shown_width(cell: &str) -> usize {
    let mut width = 0;
    let mut rest = cell.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            rest.by_ref().find(|c| *c == 'm');
        } else {
            width += 1;
        }
    }
    width
}

/// `1.5 GB`.
pub fn bytes(count: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(unit, _)| count as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", count as f64 / unit),
        None => format!("{count} B"),
    }
}
