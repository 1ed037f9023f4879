//! How many images each class of a split has, from labels and listings alone: no image is decoded.

use equipoise_base::{Error, Result};
use equipoise_catalog::{Selection, Source, counts, labels, list};
use equipoise_config::recipe::{Classes, Dataset, Recipe, Split};

/// Class names of the data set, by label.
///
/// # Errors
/// 74 or 65 naming the class list.
pub fn names(data: &Dataset) -> Result<Vec<String>> {
    match &data.classes {
        Classes::File(file) => list::read_class_names(file),
        Classes::Names(names) => Ok(names.clone()),
    }
}

/// Images per class that a split selects.
///
/// # Errors
/// 65, 74 naming the file that cannot be read; 78 where the selection does not fit.
pub fn split_counts(recipe: &Recipe, data: &Dataset, name: &str, split: &Split) -> Result<Vec<u64>> {
    counted(recipe, data, name, split).map(|(counts, _)| counts)
}

/// [`split_counts`], and how many images the source has before the selection.
///
/// # Errors
/// As [`split_counts`].
pub fn counted(recipe: &Recipe, data: &Dataset, name: &str, split: &Split) -> Result<(Vec<u64>, u64)> {
    let classes = names(data)?.len();
    let source = split.source.parse::<Source>()?.under(&data.root);
    let labels = labels::read(&source)?;
    let read = labels.len() as u64;
    let named = |error: Error| error.context(format!("data.splits.{name}"));
    let selected = match &split.select {
        Some(select) => {
            let select: Selection = select.parse()?;
            let chosen = select.select(&labels, classes, recipe.run.seed).map_err(named)?;
            chosen.into_iter().map(|index| labels[index]).collect()
        }
        None => labels,
    };
    Ok((counts::of_labels(&selected, classes).map_err(named)?, read))
}
