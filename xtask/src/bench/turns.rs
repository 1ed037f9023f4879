//! Processes that take turns: each prints that it is ready, then runs a window for every line it is sent and says how
//! long it took. Interleaved turns see the same machine, whatever else it is doing.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Turns that a side takes at least, however long they are.
pub const FEWEST: usize = 3;
/// Turns after which a side has taken enough, once they fill some time.
pub const ENOUGH: usize = 10;

/// A side of a comparison.
pub struct Side {
    /// Name in the results.
    pub name: String,
    /// Seconds of its turns.
    pub seconds: Vec<f64>,
    line: String,
    child: Child,
    /// `None` once it was told that no more turns follow.
    turns: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Side {
    /// Starts a side and waits until it is warm.
    ///
    /// # Errors
    /// When it ends before that.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let line = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start: {line}"))?;
        let (turns, answers) = (child.stdin.take(), child.stdout.take().context("no standard output")?);
        let answers = BufReader::new(answers);
        let mut side = Self { name: name.into(), seconds: Vec::new(), line, child, turns, answers };
        side.answer("ready")?;
        Ok(side)
    }

    /// One turn.
    ///
    /// # Errors
    /// When the side has ended.
    pub fn turn(&mut self) -> Result<()> {
        let turns = self.turns.as_mut().context("no more turns")?;
        writeln!(turns).and_then(|()| turns.flush()).with_context(|| format!("has ended: {}", self.line))?;
        let answer = self.answer("seconds")?;
        self.seconds.push(answer["seconds"].as_f64().context("no number of seconds")?);
        Ok(())
    }

    /// What it says of itself in the end.
    ///
    /// # Errors
    /// When it fails.
    pub fn finish(mut self) -> Result<(String, Vec<f64>, Value)> {
        self.turns = None;
        let last = self.answer("bench")?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("failed ({status}): {}", self.line);
        }
        Ok((self.name.clone(), std::mem::take(&mut self.seconds), last))
    }

    /// The next line that is JSON with this key; what libraries print besides is passed over.
    fn answer(&mut self, key: &str) -> Result<Value> {
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                bail!("ended too early ({}): {}", self.child.wait()?, self.line);
            }
            match serde_json::from_str::<Value>(&line) {
                Ok(value) if value.get(key).is_some() => return Ok(value),
                _ => {}
            }
        }
    }
}

impl Drop for Side {
    /// A side whose neighbour failed must not stay behind.
    fn drop(&mut self) {
        self.turns = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the sides take turns until all had enough or the time is over.
///
/// # Errors
/// When a side ends.
pub fn alternate(sides: &mut [Side], seconds: f64) -> Result<()> {
    let start = Instant::now();
    loop {
        for side in sides.iter_mut() {
            side.turn()?;
        }
        let (taken, spent) = (sides.first().map_or(0, |side| side.seconds.len()), start.elapsed());
        if is_enough(taken, spent, seconds) {
            return Ok(());
        }
    }
}

/// Ten turns that fill half of the time, or what fits into it, but no fewer than three.
fn is_enough(taken: usize, spent: Duration, seconds: f64) -> bool {
    let spent = spent.as_secs_f64();
    // The next round takes about as long as those before.
    let next = spent * (taken + 1) as f64 / taken.max(1) as f64;
    taken >= FEWEST && (next > seconds || (taken >= ENOUGH && spent > seconds / 2.))
}

/// Starts a program again and again; seconds of each time.
///
/// # Errors
/// When it fails.
pub fn restart(command: &mut dyn FnMut() -> Command, seconds: f64) -> Result<Vec<f64>> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while !is_enough(times.len(), start.elapsed(), seconds) {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begun = Instant::now();
        let status = command.status().with_context(|| format!("cannot start: {command:?}"))?;
        times.push(begun.elapsed().as_secs_f64());
        if !status.success() {
            bail!("failed ({status}): {command:?}");
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_bounded_by_number_and_time() {
        let enough = |taken, spent, seconds| is_enough(taken, Duration::from_secs_f64(spent), seconds);
        assert!(!enough(2, 100., 10.), "never fewer than three");
        assert!(enough(3, 9., 10.), "a fourth would not fit");
        assert!(!enough(9, 4., 10.) && !enough(10, 4., 10.) && enough(10, 6., 10.));
    }

    #[test]
    fn sides_alternate_and_a_failure_is_told() {
        let script = r#"echo noise; echo '{"ready":true}'; while read -r _; do echo '{"seconds":0.5}'; done; echo '{"bench":"x"}'"#;
        let start = |name| Side::start(name, Command::new("sh").args(["-c", script])).unwrap();
        let mut sides = vec![start("a"), start("b")];
        alternate(&mut sides, 0.).unwrap();
        for side in sides {
            let (_, seconds, last) = side.finish().unwrap();
            assert_eq!((seconds, &last["bench"]), (vec![0.5; FEWEST], &Value::from("x")));
        }
        let error = Side::start("c", Command::new("sh").args(["-c", "exit 3"])).err().unwrap();
        assert!(error.to_string().contains("ended too early"), "{error}");
    }
}
