//! `cargo xtask soak`: a run on a real cluster that somebody keeps hitting, over and over, until the time is up.
//!
//! The first round is left in peace. It says what the bytes must be and how long the work takes; every later round must
//! end with the same bytes. Goodput is useful seconds by seconds with any process of the run alive (DESIGN section 7):
//! useful are the seconds that the peaceful round took for the same work. Seconds only compare on a machine that does
//! nothing else, so the same quotient is printed of processor time, start-ups and repeated work included.

mod punisher;
mod round;

use crate::{setup, shell};
use anyhow::{Result, ensure};
use equipoise_testkit::slurm::{Cluster, Options};
use punisher::{Event, Punisher};
use round::Round;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

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
    let mut peaceful = Round::start(&cluster, &binaries, 0, args.ranks)?;
    while !peaceful.look(&cluster)? {}
    let reference = peaceful.results()?;
    println!("peaceful round: {:.0} s of work, {} files", peaceful.alive().as_secs_f64(), reference.len());

    let start = Instant::now();
    let end = Duration::from_secs(args.minutes * 60);
    let mut punisher = Punisher::new(args.seed, Duration::from_secs(args.mtbf));
    let mut balance = Balance::default();
    while start.elapsed() < end {
        let mut round = Round::start(&cluster, &binaries, balance.rounds + 1, args.ranks)?;
        while !round.look(&cluster)? {
            if start.elapsed() < end {
                punisher.look(&mut cluster, &round);
            } else {
                punisher.make_up(&mut cluster);
            }
        }
        round.require_same(&reference)?;
        balance.add(&peaceful, &round);
        println!("round {}: {} attempts; {balance}", balance.rounds, round.attempts());
    }
    summary(start.elapsed(), &punisher.happened, &balance);
    ensure!(!punisher.happened.is_empty(), "nothing happened: take a smaller --mtbf");
    Ok(())
}

/// What the rounds have cost, and what they would have cost in peace.
#[derive(Default)]
struct Balance {
    rounds: usize,
    useful: f64,
    alive: f64,
    useful_processor: f64,
    processor: f64,
}

impl Balance {
    fn add(&mut self, peaceful: &Round, round: &Round) {
        self.rounds += 1;
        self.useful += peaceful.alive().as_secs_f64();
        self.alive += round.alive().as_secs_f64();
        self.useful_processor += peaceful.processor();
        self.processor += round.processor();
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |useful: f64, all: f64| 100.0 * useful / all.max(1e-9);
        write!(
            f,
            "goodput {:.0} s useful / {:.0} s alive = {:.0} %; of processor time {:.0} / {:.0} s = {:.0} %",
            self.useful,
            self.alive,
            percent(self.useful, self.alive),
            self.useful_processor,
            self.processor,
            percent(self.useful_processor, self.processor)
        )
    }
}

fn summary(took: Duration, events: &BTreeMap<Event, usize>, balance: &Balance) {
    let happened: Vec<String> = events.iter().map(|(event, count)| format!("{count} x {event}")).collect();
    let (total, seconds) = (events.values().sum::<usize>(), took.as_secs_f64());
    println!("\nsoak: {:.1} min, {} rounds, 0 of them with other bytes", seconds / 60.0, balance.rounds);
    println!("events: {total} ({}), one every {:.0} s", happened.join(", "), seconds / total.max(1) as f64);
    println!("{balance}");
}
