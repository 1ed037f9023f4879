//! Spans of what a process does, as a timeline in Chrome's trace format (chrome://tracing, Perfetto).
//!
//! Off unless [`start`] was called: a span then costs one relaxed load. Nothing that is computed depends on it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Instant, SystemTime};

/// Spans kept; a week of a fast training has more, and a viewer takes no more either.
const MOST: usize = 1_000_000;

static ON: AtomicBool = AtomicBool::new(false);
static SPANS: Mutex<Recorded> = Mutex::new(Recorded { events: String::new(), count: 0, left_out: 0 });
static THREADS: AtomicU64 = AtomicU64::new(0);
/// One origin for all spans: microseconds since the Unix epoch, and the moment that they belong to, so that the ranks of
/// a step stand on one time axis.
static ORIGIN: OnceLock<(f64, Instant)> = OnceLock::new();

thread_local! {
    /// Number of this thread in the trace.
    static THREAD: RefCell<Option<u64>> = const { RefCell::new(None) };
}

/// Events as JSON, each behind a comma.
struct Recorded {
    events: String,
    count: usize,
    left_out: u64,
}

/// Records from now on.
pub fn start() {
    ORIGIN.get_or_init(|| {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (1e6 * wall.as_secs_f64(), Instant::now())
    });
    ON.store(true, Ordering::Relaxed);
}

/// A span from now until the result is dropped.
pub fn span(name: &'static str) -> Span {
    begin(name, None)
}

/// [`span`] with a number to tell it from its like, such as that of a step.
pub fn numbered(name: &'static str, number: u64) -> Span {
    begin(name, Some(number))
}

fn begin(name: &'static str, number: Option<u64>) -> Span {
    Span { name, number, start: ON.load(Ordering::Relaxed).then(Instant::now) }
}

/// See [`span`].
#[derive(Debug)]
#[must_use = "a span ends when it is dropped"]
pub struct Span {
    name: &'static str,
    number: Option<u64>,
    start: Option<Instant>,
}

impl Drop for Span {
    fn drop(&mut self) {
        let (Some(start), Some((wall, origin))) = (self.start, ORIGIN.get()) else { return };
        let thread = thread_number();
        let begun = wall + 1e6 * start.saturating_duration_since(*origin).as_secs_f64();
        let took = 1e6 * start.elapsed().as_secs_f64();
        let mut recorded = lock();
        if recorded.count >= MOST {
            recorded.left_out += 1;
            return;
        }
        recorded.count += 1;
        let number = self.number.map_or(String::new(), |number| format!(r#","args":{{"n":{number}}}"#));
        let _ = write!(
            recorded.events,
            ",\n{{\"ph\":\"X\",\"name\":\"{}\",\"pid\":@,\"tid\":{thread},\"ts\":{begun:.1},\"dur\":{took:.1}{number}}}",
            self.name
        );
    }
}

/// The events of this process as rank `rank`, and forgets them: a part of what [`file`] joins. Empty if nothing was
/// recorded.
pub fn take(rank: usize) -> String {
    let mut recorded = lock();
    let events = std::mem::take(&mut recorded.events).replace("\"pid\":@", &format!("\"pid\":{rank}"));
    let left_out = std::mem::take(&mut recorded.left_out);
    recorded.count = 0;
    match left_out {
        0 => events,
        more => {
            events + &format!(",\n{{\"ph\":\"M\",\"name\":\"{more} later spans left out\",\"pid\":{rank}}}")
        }
    }
}

/// A trace file out of what the ranks recorded, by rank.
pub fn file(parts: &[String]) -> String {
    let named = |rank| {
        format!(
            ",\n{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{rank},\"args\":{{\"name\":\"rank {rank}\"}}}}"
        )
    };
    let names: String = (0..parts.len()).map(named).collect();
    format!("[{}\n]\n", (names + &parts.concat()).trim_start_matches(",\n"))
}

/// This thread's number; the first time its name goes into the trace.
fn thread_number() -> u64 {
    THREAD.with_borrow_mut(|known| {
        *known.get_or_insert_with(|| {
            let number = THREADS.fetch_add(1, Ordering::Relaxed);
            let current = std::thread::current();
            let name: String =
                current.name().unwrap_or("thread").chars().filter(|c| !matches!(c, '"' | '\\')).collect();
            let _ = write!(
                lock().events,
                ",\n{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":@,\"tid\":{number},\"args\":{{\"name\":\"{name}\"}}}}"
            );
            number
        })
    })
}

fn lock() -> MutexGuard<'static, Recorded> {
    SPANS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test: the recorder is one for the process.
    #[test]
    fn spans_of_all_threads_and_ranks_are_one_file() {
        drop(span("before it starts"));
        start();
        {
            let _outer = numbered("step", 7);
            drop(span("forward"));
        }
        let named = std::thread::Builder::new().name("writer".into());
        named.spawn(|| drop(span("commit"))).unwrap().join().unwrap();
        let file = file(&[take(0), String::new()]);
        let events: Vec<serde_json::Value> = serde_json::from_str(&file).unwrap();
        let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        let names: Vec<&str> = spans.iter().filter_map(|event| event["name"].as_str()).collect();
        assert_eq!(names, ["forward", "step", "commit"]);
        assert!(spans[1]["dur"].as_f64() >= spans[0]["dur"].as_f64() && spans[1]["args"]["n"] == 7);
        assert!(spans[0]["tid"] == spans[1]["tid"] && spans[0]["tid"] != spans[2]["tid"]);
        assert!(events.iter().any(|event| event["args"]["name"] == "writer"));
        assert!(events.iter().any(|event| event["args"]["name"] == "rank 1"));
        assert_eq!(take(0), "", "what was taken is gone");
    }
}
