//! `sinfo`: what kinds of nodes the partitions have.

/// Partition, availability, time limit, nodes, CPUs, memory in MB, generic resources, features.
pub const FORMAT: &str = "%R|%a|%l|%D|%c|%m|%G|%f";

/// Nodes of one kind in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Partition.
    pub partition: String,
    /// Whether jobs can be submitted to it.
    pub up: bool,
    /// Longest time limit, as Slurm writes it.
    pub limit: String,
    /// Number of nodes.
    pub nodes: u32,
    /// CPUs of one; a `+` after it means at least.
    pub cpus: u32,
    /// Memory of one in MB.
    pub memory: u64,
    /// Generic resources; none if there are none.
    pub gres: Option<String>,
    /// Features.
    pub features: Vec<String>,
}

/// The rows; lines that are none are left out.
pub fn parse(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [partition, up, limit, nodes, cpus, memory, gres, features] = fields[..] else { return None };
        let given = |text: &str| !["", "(null)", "N/A"].contains(&text);
        Some(Row {
            partition: partition.into(),
            up: up == "up",
            limit: limit.into(),
            nodes: nodes.parse().ok()?,
            cpus: cpus.trim_end_matches('+').parse().ok()?,
            memory: memory.trim_end_matches('+').parse().ok()?,
            gres: given(gres).then(|| gres.to_string()),
            features: features.split(',').filter(|feature| given(feature)).map(str::to_string).collect(),
        })
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_nodes() {
        let rows = parse(
            "low|up|infinite|2|2|8000|(null)|(null)\ngpu|up|2-00:00:00|16|64+|512000+|gpu:a100:4(S:0-1)|avx512,ib\nx|\n",
        );
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].gres.as_deref(), rows[0].features.len(), rows[0].cpus), (None, 0, 2));
        assert_eq!((rows[1].cpus, rows[1].memory, rows[1].nodes), (64, 512_000, 16));
        assert_eq!(rows[1].features, ["avx512", "ib"]);
    }
}
