//! Kind `lt_profile`: class counts, shot groups and synthesis plans, exactly.

use crate::case::{Case, Tensors};
use equipoise_base::{Error, Result};
use equipoise_catalog::{ShotGroup, profile};
use equipoise_workplan::{ClassPlan, Plan, PlanConfig};
use tch::{Kind, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    match case.param::<String>("op")?.as_str() {
        "exponential" => exponential(case),
        "shot_groups" => shot_groups(case),
        "balance_plan" => balance_plan(case),
        "syn_plan" => syn_plan(case),
        op => Err(case.broken(&format!("op '{op}' is unknown"))),
    }
}

fn exponential(case: &Case) -> Result<Tensors> {
    let (classes, head): (usize, u64) = (case.param("num_classes")?, case.param("n_max")?);
    let mut got = Tensors::new();
    for factor in case.param::<Vec<u64>>("imbalance_factors")? {
        let counts = profile::exponential(classes, head, factor as f64)?;
        got.insert(format!("total_{factor}"), integers(&[counts.iter().sum()]));
        got.insert(format!("counts_{factor}"), integers(&counts));
    }
    Ok(got)
}

fn shot_groups(case: &Case) -> Result<Tensors> {
    let groups: Vec<ShotGroup> = counts(case)?.into_iter().map(ShotGroup::of).collect();
    let number =
        |group: &ShotGroup| ShotGroup::ALL.iter().position(|other| other == group).unwrap_or_default();
    let size = |group| groups.iter().filter(|&&other| other == group).count() as u64;
    let group: Vec<u64> = groups.iter().map(|group| number(group) as u64).collect();
    Ok([("group", integers(&group)), ("group_sizes", integers(&ShotGroup::ALL.map(size)))]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into())
}

fn balance_plan(case: &Case) -> Result<Tensors> {
    let plan = PlanConfig::BalanceTo { n: case.param("target")? }.plan(&counts(case)?);
    Ok([("n_syn", integers(&plan.synthetic())), ("total", integers(&[plan.totals().synthetic]))]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into())
}

fn syn_plan(case: &Case) -> Result<Tensors> {
    let n = case.param("n")?;
    let config = match case.param::<String>("plan")?.as_str() {
        "add" => PlanConfig::Add { n },
        "only" => PlanConfig::Only { n },
        "random" => PlanConfig::Random { n },
        plan => return Err(case.broken(&format!("plan '{plan}' is unknown"))),
    };
    let Plan { classes } = config.plan(&counts(case)?);
    let columns: Vec<u64> = classes.iter().copied().flat_map(columns).collect();
    let totals = self::columns(Plan { classes }.totals());
    Ok([("plan", integers(&columns).view([-1, 3])), ("totals", integers(&totals))]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into())
}

fn columns(ClassPlan { real, extra_real, synthetic }: ClassPlan) -> [u64; 3] {
    [real, extra_real, synthetic]
}

fn counts(case: &Case) -> Result<Vec<u64>> {
    let counts = Vec::<i64>::try_from(case.input("counts")?.to_kind(Kind::Int64))
        .map_err(|error| case.broken(&format!("input 'counts': {error}")))?;
    counts
        .into_iter()
        .map(|count| u64::try_from(count).map_err(|_| case.broken("input 'counts' is negative")))
        .collect::<Result<_, Error>>()
}

fn integers(values: &[u64]) -> Tensor {
    Tensor::from_slice(&values.iter().map(|&value| value as i64).collect::<Vec<_>>())
}
