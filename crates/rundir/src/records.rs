//! Which rows of `metrics.jsonl` count after restarts.

use serde_json::Value;
use std::collections::BTreeMap;

/// Removes rows that a later attempt has superseded, keeping the order of the rest.
///
/// An attempt that resumes at step `s` repeats the steps from `s` on, so it supersedes what earlier attempts logged
/// there: a row counts unless a later attempt has a row of the same or an earlier step. What remains has no step
/// twice and none missing. Rows are objects with whole numbers `step` and `attempt`; rows without them always count.
pub fn current(rows: Vec<Value>) -> Vec<Value> {
    let place = |row: &Value| Some((row.get("attempt")?.as_u64()?, row.get("step")?.as_u64()?));
    let mut first_step: BTreeMap<u64, u64> = BTreeMap::new();
    for (attempt, step) in rows.iter().filter_map(place) {
        first_step.entry(attempt).and_modify(|first| *first = step.min(*first)).or_insert(step);
    }
    // From here: the first step that any attempt after this one has logged.
    let mut superseded_from = BTreeMap::new();
    let mut from = u64::MAX;
    for (&attempt, &first) in first_step.iter().rev() {
        superseded_from.insert(attempt, from);
        from = from.min(first);
    }
    let counts = |row: &Value| match place(row) {
        Some((attempt, step)) => superseded_from.get(&attempt).is_none_or(|&from| step < from),
        None => true,
    };
    rows.into_iter().filter(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(attempt: u64, step: u64) -> Value {
        json!({"attempt": attempt, "step": step})
    }

    #[test]
    fn the_newest_attempt_wins_and_no_step_is_twice() {
        let mut rows: Vec<Value> = (1..=7).map(|step| row(1, step)).collect();
        rows.extend((5..=9).map(|step| row(2, step)));
        rows.extend((9..=10).map(|step| row(3, step)));
        let kept = current(rows);
        let steps: Vec<u64> = kept.iter().map(|row| row["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, (1..=10).collect::<Vec<_>>());
        assert_eq!(kept[3], row(1, 4));
        assert_eq!(kept[4], row(2, 5));
        assert_eq!(kept[8], row(3, 9));
    }

    #[test]
    fn an_attempt_that_fell_further_back_supersedes_all_between() {
        let rows = vec![row(1, 1), row(1, 2), row(2, 3), row(2, 4), row(3, 2)];
        assert_eq!(current(rows), [row(1, 1), row(3, 2)]);
    }

    #[test]
    fn several_rows_of_one_step_and_rows_without_a_step_stay() {
        let eval = json!({"attempt": 1, "step": 2, "kind": "eval"});
        let note = json!({"note": "x"});
        let rows = vec![row(1, 2), eval, note];
        assert_eq!(current(rows.clone()), rows);
    }
}
