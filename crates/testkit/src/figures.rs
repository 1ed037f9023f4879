//! What fault tests measured, for the table of `cargo xtask faults` (docs/faults.md).

use std::fmt::Display;
use std::io::Write as _;

/// Environment variable with the file that figures are added to; without it they go nowhere.
pub const VARIABLE: &str = "EQUIPOISE_FIGURES";

/// Notes that this test of a fault (`"F3"`) measured `value` of `what`, on a line of its own. nextest says which test it is;
/// without it the figure goes nowhere.
///
/// A test calls it once its assertions hold, so that a figure is never that of a failed test.
///
/// # Panics
/// If the file cannot be written, or `what` holds a tab or a line break.
#[allow(clippy::disallowed_methods, reason = "no run directory is near")]
pub fn figure(fault: &str, what: &str, value: impl Display) {
    let of_nextest = |name: &str| std::env::var(format!("NEXTEST_{name}")).ok();
    let Some((binary, test)) = of_nextest("BINARY_ID").zip(of_nextest("TEST_NAME")) else { return };
    let line = format!("{binary} {test}\t{fault}\t{what}\t{value}\n");
    assert!(line.matches(['\t', '\n']).count() == 4, "{line:?} is not one line of four columns");
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    // One write of one line: tests run beside each other.
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
