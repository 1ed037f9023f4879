//! Nodes and ranks of a job.

use equipoise_config::slurm::Job;
use equipoise_config::{Kind, Stage};

/// Nodes and ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Nodes of the job, or of each task of the array.
    pub nodes: u32,
    /// Ranks, of each task for an array.
    pub ranks: u32,
    /// Ranks on a node, where all nodes have as many.
    pub ranks_per_node: Option<u32>,
    /// Tasks of the array, if it is one.
    pub array: Option<u32>,
}

/// The shape of the job of `stage`. `default_ranks` is `run.ranks`; `usable` says how many of so many ranks the stage can
/// use; an array has at most `max_array` tasks.
pub fn of(
    job: &Job,
    stage: &Stage,
    default_ranks: u32,
    max_array: u32,
    usable: &dyn Fn(u32) -> u32,
) -> Shape {
    let per_node = job.ntasks_per_node;
    if let Some(tasks) = job.array.filter(|_| can_be_array(stage)) {
        let ranks = usable(per_node.unwrap_or(1)).max(1);
        return Shape {
            nodes: 1,
            ranks,
            ranks_per_node: None,
            array: Some(tasks.clamp(1, max_array.max(1))),
        };
    }
    let wanted = per_node.map_or(default_ranks, |each| job.nodes.unwrap_or(1).saturating_mul(each));
    let ranks = usable(wanted).clamp(1, wanted.max(1));
    let nodes = match per_node {
        Some(each) => ranks.div_ceil(each.max(1)),
        None => job.nodes.unwrap_or(1).min(ranks),
    };
    let ranks_per_node = (nodes > 1 && ranks.is_multiple_of(nodes)).then(|| ranks / nodes);
    Shape { nodes, ranks, ranks_per_node, array: None }
}

/// Stages whose units are claimed one by one, and leave their results in files of their own.
pub fn can_be_array(stage: &Stage) -> bool {
    stage.kind == Kind::Generate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::tests::stage;

    fn job(nodes: Option<u32>, ntasks_per_node: Option<u32>, array: Option<u32>) -> Job {
        Job { nodes, ntasks_per_node, array, ..Job::default() }
    }

    #[test]
    fn nodes_follow_the_ranks_that_are_of_use() {
        let all = |ranks: u32| ranks;
        let powers = |ranks: u32| if ranks >= 4 { 4 } else { 1 };
        let shape = |job: &Job, usable: &dyn Fn(u32) -> u32| {
            let shape = of(job, &stage(Kind::Arm, "train.ce"), 6, 1000, usable);
            (shape.nodes, shape.ranks, shape.ranks_per_node)
        };
        assert_eq!(shape(&job(None, None, None), &all), (1, 6, None));
        assert_eq!(shape(&job(Some(2), None, None), &all), (2, 6, Some(3)));
        assert_eq!(shape(&job(Some(4), None, None), &all), (4, 6, None), "6 ranks on 4 nodes are not even");
        assert_eq!(shape(&job(Some(8), None, None), &all), (6, 6, Some(1)), "no node without a rank");
        assert_eq!(shape(&job(Some(2), Some(8), None), &all), (2, 16, Some(8)));
        assert_eq!(shape(&job(Some(2), Some(3), None), &powers), (2, 4, Some(2)));
        assert_eq!(shape(&job(Some(2), Some(8), None), &powers), (1, 4, None), "one node suffices");
    }

    #[test]
    fn arrays_are_for_stages_of_independent_units_and_below_the_limit() {
        let array = job(Some(4), Some(2), Some(5000));
        let of = |kind| of(&array, &stage(kind, "x"), 1, 1000, &|ranks| ranks);
        assert_eq!(of(Kind::Generate), Shape { nodes: 1, ranks: 2, ranks_per_node: None, array: Some(1000) });
        assert_eq!(of(Kind::Arm), Shape { nodes: 4, ranks: 8, ranks_per_node: Some(2), array: None });
    }
}
