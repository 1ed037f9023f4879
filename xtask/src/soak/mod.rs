//! `cargo xtask soak`: a run on a real cluster that somebody keeps hitting, over and over, until the time is up.
//!
//! The first round is left in peace and says what the bytes must be; every later round must end with the same. Goodput is
//! useful seconds by seconds with any process of the run alive (DESIGN section 7). Useful is what the ranks themselves
//! have noted for units whose result was kept (`rundir::work`): measured in the very run that was hit, so that other load
//! on the machine stretches both and says nothing about either. See docs/design/slurm.md.

mod punisher;
mod round;
mod timeline;

use crate::{faults, setup, shell};
use anyhow::{Result, ensure};
use equipoise_rundir::work::Work;
use equipoise_testkit::slurm::{Cluster, Options};
use punisher::{Event, Punisher};
use round::{Round, Size};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};
use timeline::Phases;

/// The bar of F34, in percent.
const GOODPUT: f64 = 80.0;
/// A soak of so many minutes goes on record, for the table of faults; a shorter one is a look.
const ON_RECORD: u64 = 120;

/// How long and how hard.
#[derive(clap::Args)]
pub struct Args {
    /// Minutes to go on for; the round that is running then is finished in peace.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Mean seconds between events.
    #[arg(long, default_value_t = 60)]
    mtbf: u64,
    /// Seed of what happens when.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Ranks of each step, on two nodes.
    #[arg(long, default_value_t = 4)]
    ranks: usize,
    /// How much work there is in a round: the more, the less the start of its stages counts.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    work: u64,
    /// Use the debug binaries that are there.
    #[arg(long)]
    debug: bool,
}

/// Soaks, and prints the balance.
pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    let profile = if args.debug { "debug" } else { "release" };
    if !args.debug {
        shell::run(shell::cargo().args(["build", "--release", "--quiet"]))?;
    }
    let binaries = shell::root().join("target").join(profile);
    let mut cluster = Cluster::boot(Options { grace: 10, ..Options::default() });
    let ended = soak(args, &mut cluster, &binaries);
    if ended.is_err() {
        eprintln!("kept for inspection: {}", cluster.keep().display());
    }
    ended
}

fn soak(args: &Args, cluster: &mut Cluster, binaries: &Path) -> Result<()> {
    let size = Size { ranks: args.ranks, work: args.work };
    let mut peaceful = Round::start(cluster, binaries, 0, size)?;
    while !peaceful.look(cluster)?.complete {}
    let reference = peaceful.results()?;
    let mut balance = Balance::default();
    balance.add(&peaceful)?;
    println!("peaceful round: {balance}, {} files", reference.len());

    let start = Instant::now();
    let end = Duration::from_secs(args.minutes * 60);
    let mut punisher = Punisher::new(args.seed, Duration::from_secs(args.mtbf));
    let mut balance = Balance::default();
    while start.elapsed() < end {
        let mut round = Round::start(cluster, binaries, balance.rounds + 1, size)?;
        loop {
            let seen = round.look(cluster)?;
            if seen.complete {
                break;
            }
            if start.elapsed() < end {
                punisher.look(cluster, &round, &seen.ranks);
            } else {
                punisher.make_up(cluster);
            }
        }
        round.require_same(&reference)?;
        balance.add(&round)?;
        println!("round {}: {} attempts; so far {balance}", balance.rounds, round.attempts());
    }
    summary(start.elapsed(), &punisher.happened, &balance);
    ensure!(!punisher.happened.is_empty(), "nothing happened: take a smaller --mtbf");
    if args.minutes < ON_RECORD {
        return Ok(());
    }
    note(start.elapsed(), &punisher.happened, &balance)
}

/// What the rounds have cost, and what it was good for.
#[derive(Default)]
struct Balance {
    rounds: usize,
    work: Work,
    alive: f64,
    phases: Phases,
}

impl Balance {
    fn add(&mut self, round: &Round) -> Result<()> {
        self.rounds += 1;
        self.work += round.work()?;
        self.alive += round.alive().as_secs_f64();
        self.phases += round.phases()?;
        Ok(())
    }
}

impl Balance {
    /// Useful part of the seconds with any process alive.
    fn goodput(&self) -> f64 {
        self.work.useful / self.alive.max(1e-9)
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Work { useful, superseded } = self.work;
        let percent = 100.0 * self.goodput();
        write!(f, "goodput {useful:.0} s useful / {:.0} s alive = {percent:.0} %", self.alive)?;
        write!(f, " ({superseded:.0} s made again)")
    }
}

fn summary(took: Duration, events: &BTreeMap<Event, usize>, balance: &Balance) {
    let happened: Vec<String> = events.iter().map(|(event, count)| format!("{count} x {event}")).collect();
    let (total, seconds) = (events.values().sum::<usize>(), took.as_secs_f64());
    println!("\nsoak: {:.1} min, {} rounds, 0 of them with other bytes", seconds / 60.0, balance.rounds);
    println!(
        "events: {total} ({}), one every {:.0} s of life",
        happened.join(", "),
        balance.alive / total.max(1) as f64
    );
    println!("{balance}");
    println!("{}", balance.phases);
}

/// Puts the soak on record.
fn note(took: Duration, events: &BTreeMap<Event, usize>, balance: &Balance) -> Result<()> {
    let goodput = 100.0 * balance.goodput();
    let mut figures = vec![
        ("minutes".to_string(), format!("{:.0}", took.as_secs_f64() / 60.0)),
        ("runs from submission to report".into(), balance.rounds.to_string()),
        ("of them with other bytes".into(), "0".into()),
        ("goodput".into(), format!("{goodput:.0} %")),
    ];
    figures.extend(events.iter().map(|(event, count)| (event.to_string(), count.to_string())));
    faults::note("F34", goodput >= GOODPUT, &figures)
}
