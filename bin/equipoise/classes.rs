//! How many images each class and group of a split has, from labels and listings alone: no image is decoded.

use equipoise_base::{Error, Result};
use equipoise_catalog::{Grouped, Groups, Selection, Source, counts, labels, list};
use equipoise_config::recipe::{Classes, Dataset, Generate, Recipe, Split};
use equipoise_workplan::{ClassPlan, Layout, LayoutConfig, PlanConfig};

/// Class names of the data set, by label.
///
/// # Errors
/// 74 or 65 naming the class list.
pub fn names(data: &Dataset) -> Result<Vec<String>> {
    read_names(&data.classes)
}

fn read_names(names: &Classes) -> Result<Vec<String>> {
    match names {
        Classes::File(file) => list::read_class_names(file),
        Classes::Names(names) => Ok(names.clone()),
    }
}

/// The groups of the data set; none if it has no contexts.
fn groups(data: &Dataset) -> Result<Option<Groups>> {
    let Some(contexts) = &data.contexts else { return Ok(None) };
    Ok(Some(Groups { classes: names(data)?, contexts: read_names(contexts)? }))
}

/// Images that a split selects.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By class.
    pub classes: Vec<u64>,
    /// By group; none if the data set or the source of the split has no contexts.
    pub groups: Option<Vec<u64>>,
    /// Images of the source before the selection.
    pub read: u64,
}

impl Counts {
    /// Counts a split.
    ///
    /// # Errors
    /// 65, 74 naming the file that cannot be read; 78 where the selection does not fit.
    pub fn read(recipe: &Recipe, data: &Dataset, name: &str, split: &Split) -> Result<Self> {
        let classes = names(data)?.len();
        let source = split.source.parse::<Source>()?.under(&data.root);
        let named = |error: Error| error.context(format!("data.splits.{name}"));
        let labels = labels::read(&source)?;
        let selected = match &split.select {
            Some(select) => {
                let select: Selection = select.parse()?;
                select.select(&labels, classes, recipe.run.seed).map_err(named)?
            }
            None => (0..labels.len()).collect(),
        };
        let chosen = |of: &[u32]| selected.iter().map(|&index| of[index]).collect::<Vec<u32>>();
        let groups = match (groups(data)?, Grouped::read(&source)?) {
            (Some(groups), Some(grouped)) => {
                let of_image = grouped.groups(&groups).map_err(named)?;
                Some(counts::of_labels(&chosen(&of_image), groups.len()).map_err(named)?)
            }
            _ => None,
        };
        let classes = counts::of_labels(&chosen(&labels), classes).map_err(named)?;
        Ok(Self { classes, groups, read: labels.len() as u64 })
    }
}

/// What is generated for a set.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What is completed: each class, or each group, with its plan.
    pub rows: Vec<(String, ClassPlan)>,
    /// Where every image belongs.
    pub layout: Layout,
}

impl Planned {
    /// The plan of a set over the counts of its split.
    ///
    /// # Errors
    /// 78 if the plan does not fit the data.
    pub fn new(data: &Dataset, generate: &Generate, counts: &Counts) -> Result<Self> {
        let plan = generate.plan.parse::<PlanConfig>()?;
        let config = LayoutConfig { batch: generate.batch, batches_per_shard: generate.batches_per_shard };
        let names = names(data)?;
        if !plan.is_by_group() {
            let plan = plan.plan(&counts.classes);
            let layout = Layout::new(config, &names, &plan.synthetic())?;
            return Ok(Self { rows: names.into_iter().zip(plan.classes).collect(), layout });
        }
        let (Some(groups), Some(counts)) = (groups(data)?, &counts.groups) else {
            let split = &generate.split;
            return Err(Error::config(format!(
                "data.splits.{split}: a plan by group needs data.contexts and a source that says the context of each \
                 image, 'group_list' or 'metadata'"
            )));
        };
        let plan = plan.plan(counts);
        let layout = Layout::grouped(config, &names, &plan.synthetic())?;
        Ok(Self { rows: groups.names().into_iter().zip(plan.classes).collect(), layout })
    }
}
