//! `sinfo --Node`: which nodes there are, and which of them Slurm has lost (F16).

use std::collections::BTreeMap;

/// Name and state of each node.
pub const FORMAT: &str = "%N|%T";

/// States by node; lines that are none are left out. A node stands there once for each of its partitions.
pub fn parse(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (name, state) = line.trim().split_once('|')?;
        // Nodes become names of folders.
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let fine = !name.is_empty() && !name.starts_with('.') && name.chars().all(legal);
        fine.then(|| (name.to_string(), state.to_string()))
    };
    text.lines().filter_map(pair).collect()
}

/// Whether a node in this state has failed: down, failing, or (`*`) not answering. One that was drained was taken out on
/// purpose.
pub fn is_lost(state: &str) -> bool {
    let state = state.to_ascii_lowercase();
    state.contains('*') || ["down", "fail"].iter().any(|failed| state.starts_with(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_nodes() {
        let nodes =
            parse("n1|idle\nn2|down*\nn1|idle\nn3|allocated*\nn4|drained\nn5|failing\n../x|down\n|\nn6\n");
        let lost: Vec<&str> =
            nodes.iter().filter(|(_, state)| is_lost(state)).map(|(name, _)| name.as_str()).collect();
        assert_eq!((nodes.len(), lost), (5, vec!["n2", "n3", "n5"]));
    }
}
