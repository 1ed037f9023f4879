//! Times as Slurm reads and writes them.

use std::time::Duration;

/// A time limit or a time left: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`,
/// `days-hours:minutes`, `days-hours:minutes:seconds`. `None` for no limit and for what is no time.
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (Some(number(days)?), clock),
        None => (None, text),
    };
    let parts: Vec<u64> = clock.split(':').map(number).collect::<Option<_>>()?;
    let seconds = match (days, parts.as_slice()) {
        (None, [minutes]) => minutes.checked_mul(60)?,
        (None, [minutes, seconds]) => minutes.checked_mul(60)?.checked_add(*seconds)?,
        (_, [hours, rest @ ..]) if rest.len() <= 2 => {
            let minutes = hours.checked_mul(60)?.checked_add(*rest.first().unwrap_or(&0))?;
            minutes.checked_mul(60)?.checked_add(*rest.get(1).unwrap_or(&0))?
        }
        _ => return None,
    };
    days.unwrap_or(0).checked_mul(24 * 3600)?.checked_add(seconds).map(Duration::from_secs)
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_and_no_times() {
        for (text, seconds) in [
            ("90", Some(5400)),
            ("2:30", Some(150)),
            ("1:00:05", Some(3605)),
            ("1-0", Some(86400)),
            ("1-02:30", Some(95400)),
            ("2-00:00:01", Some(172_801)),
            (" 10:00\n", Some(600)),
            ("UNLIMITED", None),
            ("INVALID", None),
            ("NOT_SET", None),
            ("", None),
            ("-1", None),
            ("1:2:3:4", None),
            ("1::2", None),
            ("99999999999999999999", None),
            ("18446744073709551615-0", None),
        ] {
            assert_eq!(parse(text), seconds.map(Duration::from_secs), "{text:?}");
        }
    }
}
