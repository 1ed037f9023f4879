//! "Did you mean ...?"

/// Names less alike than this are not offered, by the first measure and by the second: the first finds something in
/// common between any two words.
const LIKENESS: [f64; 2] = [0.72, 0.65];

/// The candidate most like `name`, if any is alike.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .filter_map(|candidate| Some((likeness(&lower, &candidate.to_lowercase())?, candidate)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The first measure forgives missing ends, the second swapped letters in short words; both are 1 for equal words.
fn likeness(a: &str, b: &str) -> Option<f64> {
    let measures = [strsim::jaro_winkler(a, b), strsim::normalized_damerau_levenshtein(a, b)];
    let alike = measures.iter().zip(LIKENESS).any(|(measure, least)| *measure >= least);
    alike.then(|| measures[0].max(measures[1]))
}

/// `; did you mean 'y'? (valid: x, y, z)` for a message about `name`.
pub fn hint(name: &str, candidates: &[&str]) -> String {
    let mean = nearest(name, candidates.iter().copied()).map(|near| format!("; did you mean '{near}'?"));
    match candidates {
        [] => "; there are none".into(),
        _ => format!("{} (valid: {})", mean.unwrap_or_default(), candidates.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_their_key_and_noise_finds_none() {
        let keys = ["global_batch", "micro_batch", "steps"];
        assert_eq!(nearest("globl_batch", keys), Some("global_batch"));
        assert_eq!(nearest("step", keys), Some("steps"));
        assert_eq!(nearest("Steps", keys), Some("steps"));
        assert_eq!(nearest("zzz", keys), None);
        assert_eq!(nearest("batch_size", ["arch", "loss"]), None);
        assert_eq!(nearest("nte", ["plain", "net"]), Some("net"));
        assert_eq!(hint("step", &["steps"]), "; did you mean 'steps'? (valid: steps)");
    }
}
