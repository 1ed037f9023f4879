//! What happens to a run, and when: as a function of the seed, so that a soak can be repeated.

use super::round::Round;
use equipoise_base::rng::Key;
use equipoise_testkit::slurm::Cluster;
use equipoise_testkit::tree::{self, Found};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// How long a lost node stays away.
const AWAY: Duration = Duration::from_secs(5);

/// One kind of bad luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// One rank is killed.
    Kill,
    /// A job of higher priority takes all nodes for a moment.
    Preemption,
    /// The administrator requeues the job.
    Requeue,
    /// A node loses its power.
    NodeLoss,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Event::Kill => "kill",
            Event::Preemption => "preemption",
            Event::Requeue => "requeue",
            Event::NodeLoss => "node loss",
        })
    }
}

const EVENTS: [Event; 4] = [Event::Kill, Event::Preemption, Event::Requeue, Event::NodeLoss];

/// Makes events happen, exponentially distributed in time.
pub struct Punisher {
    seed: u64,
    mean: Duration,
    count: u64,
    due: Instant,
    lost: Option<(usize, Instant)>,
    /// How often each kind has hit a running step.
    pub happened: BTreeMap<Event, usize>,
}

impl Punisher {
    pub fn new(seed: u64, mean: Duration) -> Self {
        let mut punisher =
            Self { seed, mean, count: 0, due: Instant::now(), lost: None, happened: BTreeMap::new() };
        punisher.schedule();
        punisher
    }

    fn schedule(&mut self) {
        let uniform = Key::new(self.seed, "soak.when").index(self.count).stream().range(0.0, 1.0);
        self.due = Instant::now() + self.mean.mul_f64(-(1.0 - uniform).ln());
        self.count += 1;
    }

    /// Lets the next event happen if it is due and there is a running step to hit.
    pub fn look(&mut self, cluster: &mut Cluster, round: &Round, ranks: &[Found]) {
        if self.lost.is_some_and(|(_, since)| since.elapsed() > AWAY) {
            self.make_up(cluster);
        }
        if Instant::now() < self.due || ranks.is_empty() || self.lost.is_some() {
            return;
        }
        let mut stream = Key::new(self.seed, "soak.what").index(self.count).stream();
        let event = EVENTS[stream.below(EVENTS.len() as u64) as usize];
        match event {
            Event::Kill => tree::send(ranks[stream.below(ranks.len() as u64) as usize].pid, libc::SIGKILL),
            Event::Preemption => drop(cluster.preempt(cluster.node_names().len(), 1)),
            Event::Requeue => {
                let Some(job) = round.running_job(cluster) else { return };
                cluster.requeue(job);
            }
            Event::NodeLoss => {
                let node = 1 + stream.below(cluster.node_names().len() as u64) as usize;
                cluster.kill_node(node);
                self.lost = Some((node, Instant::now()));
            }
        }
        println!("  {event}");
        *self.happened.entry(event).or_default() += 1;
        self.schedule();
    }

    /// Boots the lost node again.
    pub fn make_up(&mut self, cluster: &mut Cluster) {
        if let Some((node, _)) = self.lost.take() {
            cluster.boot_node(node);
        }
    }
}
