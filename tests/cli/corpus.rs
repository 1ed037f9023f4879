//! F21: every mistake of `bad-configurations.toml` ends with 78 before anything is asked of Slurm, within 100 ms, at the
//! place where it was made. What is said is one snapshot for people to read.

use crate::util::{Dir, RECIPE, Ran, images};
use equipoise_testkit::{FakeSlurm, figure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

const CORPUS: &str = include_str!("bad-configurations.toml");
/// The bar. Processor time is measured against it: the machine may be busy with other tests.
const BAR: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct Corpus {
    whole: Vec<String>,
    bytes: Vec<String>,
    behind: BTreeMap<String, Vec<String>>,
    end: End,
    instead: BTreeMap<String, Vec<String>>,
    set: Set,
}

#[derive(Deserialize)]
struct End {
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Set {
    arguments: Vec<String>,
}

/// One mistake: what a reader of the snapshot is shown, the recipe, and a further argument.
struct Case {
    shown: String,
    recipe: Vec<u8>,
    set: Option<String>,
}

impl Case {
    fn new(shown: impl Into<String>, recipe: impl Into<Vec<u8>>) -> Self {
        Self { shown: shown.into(), recipe: recipe.into(), set: None }
    }
}

fn cases() -> Vec<Case> {
    let corpus: Corpus = toml::from_str(CORPUS).unwrap();
    let mut cases = Vec::new();
    for text in &corpus.whole {
        cases.push(Case::new(format!("(whole) {}", text.escape_debug()), text.as_bytes()));
    }
    for bytes in &corpus.bytes {
        let parsed = bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap());
        cases.push(Case::new(format!("(bytes) {bytes}"), parsed.collect::<Vec<u8>>()));
    }
    for (header, lines) in &corpus.behind {
        for line in lines {
            let recipe = replaced(header, &format!("{header}\n{line}"));
            cases.push(Case::new(format!("{header} {}", line.replace('\n', " ; ")), recipe));
        }
    }
    for text in &corpus.end.texts {
        cases.push(Case::new(text.replace('\n', " ; "), format!("{RECIPE}{text}\n")));
    }
    for (old, texts) in &corpus.instead {
        for text in texts {
            cases.push(Case::new(format!("(not {old}) {text}"), replaced(old, text)));
        }
    }
    for argument in corpus.set.arguments {
        let shown = format!("--set {argument}");
        cases.push(Case { set: Some(argument), ..Case::new(shown, RECIPE) });
    }
    cases
}

fn replaced(old: &str, new: &str) -> String {
    assert_eq!(RECIPE.matches(old).count(), 1, "{old:?} does not stand once in the recipe");
    RECIPE.replace(old, new)
}

/// Whether a message begins with the place of the mistake.
fn names_its_place(case: &Case, message: &str) -> bool {
    let line = message.strip_prefix("error: ").unwrap_or_default();
    let place = line.strip_prefix("my.toml:").and_then(|rest| {
        let (row, rest) = rest.split_once(':')?;
        let (column, _) = rest.split_once(": ")?;
        Some((row.parse::<u32>().ok()?, column.parse::<u32>().ok()?))
    });
    place.is_some() || case.set.is_some() && line.starts_with("--set ")
}

/// Processor time of all commands so far.
fn processor_time() -> Duration {
    // SAFETY: rusage is plain data for which all zeros is a valid value, and the call only writes it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

#[test]
fn every_mistake_is_named_with_its_place_before_anything_is_done() {
    let (dir, slurm) = (Dir::new(), FakeSlurm::new());
    images(&dir);
    let cases = cases();
    let (mut said, mut unplaced, mut accepted) = (String::new(), Vec::new(), Vec::new());
    let mut times = Vec::new();
    for case in &cases {
        std::fs::write(dir.path().join("my.toml"), &case.recipe).unwrap();
        let mut args = vec!["submit", "my.toml"];
        args.extend(case.set.iter().flat_map(|set| ["--set", set]));
        let mut command = dir.command(&args);
        slurm.equip(&mut command);
        let (start, before) = (Instant::now(), processor_time());
        let ran = Ran::of(&mut command);
        times.push((processor_time() - before, start.elapsed()));
        if ran.code != 78 || !ran.out.is_empty() {
            accepted.push(format!("{}: {} {}{}", case.shown, ran.code, ran.out, ran.err));
            continue;
        }
        if !names_its_place(case, &ran.err) {
            unplaced.push(format!("{}: {}", case.shown, ran.err));
        }
        let message = ran.err.trim_end().replace(&dir.path().display().to_string(), "DIR");
        writeln!(said, "{}\n    {}", case.shown, message.replace('\n', "\n    ")).unwrap();
    }
    assert!(accepted.is_empty(), "not refused with 78:\n{}", accepted.join("\n"));
    assert!(unplaced.is_empty(), "without a place:\n{}", unplaced.join("\n"));
    assert_eq!(slurm.calls_of("sbatch"), Vec::<String>::new(), "something was submitted");
    assert!(!dir.path().join("runs").exists(), "something was made");
    assert!(cases.len() >= 200, "{} mistakes", cases.len());
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (processor, elapsed): (Vec<Duration>, Vec<Duration>) = times.into_iter().unzip();
    let (processor, elapsed) = (median(processor), median(elapsed));
    assert!(processor <= BAR, "{processor:?}");
    figure("F21", "mistakes refused", cases.len());
    figure("F21", "median processor time, ms", processor.as_millis());
    figure("F21", "median time to the message, ms", elapsed.as_millis());
    insta::assert_snapshot!("what_is_said_of_mistakes", said);
}
