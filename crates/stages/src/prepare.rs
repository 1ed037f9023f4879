//! `equipoise-prepare`: a split, read, selected and packed into one HDF5 file with a checksum for every image.

use crate::step::Step;
use equipoise_base::{Result, ensure};
use equipoise_catalog::{Grouped, Selection, Source, counts};
use equipoise_config::method;
use equipoise_data::files::{BadImages, FilesConfig};
use equipoise_data::{Filter, read_some};
use equipoise_shards::{Codec, Image, Packed, PackedMeta, PackedRow, tool_version};
use serde::Deserialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Files that a rehearsal reads.
const REHEARSED: usize = 512;

/// Parameters of the stage: `[data.splits.NAME]` with what `[data]` says.
#[derive(Clone, Debug, Deserialize)]
struct PrepareParams {
    split: String,
    root: PathBuf,
    size: [u32; 2],
    channels: u32,
    source: method::Source,
    select: Option<method::Select>,
    codec: Option<method::Codec>,
}

/// Packs one split.
///
/// # Errors
/// 65 when a file is missing or damaged, or too many images are bad; 78 when the selection does not fit.
pub fn run(step: &Step) -> Result<()> {
    let params: PrepareParams = step.params()?;
    if step.rank() > 0 {
        return Ok(());
    }
    let start = Instant::now();
    let source = params.source.parse::<Source>()?.under(&params.root);
    let classes = step.classes()?;
    // Of a few files even one may be too many.
    let max_fraction = if step.rehearses() { 1. } else { step.dataset()?.max_bad };
    let config = FilesConfig {
        size: params.size[0] as usize,
        channels: params.channels as usize,
        filter: Filter::Bicubic,
        bad_images: BadImages { max_fraction },
        ..FilesConfig::default()
    };
    let most = if step.rehearses() { REHEARSED } else { usize::MAX };
    let found = read_some(&source, &config, classes.len(), most)?;
    let all = found.images.labels.len() as u64;
    let selection: Selection = match &params.select {
        // A few of the files may lack what the selection wants.
        Some(select) if !step.rehearses() => select.parse()?,
        _ => Selection::default(),
    };
    let chosen = selection.select(&found.images.labels, classes.len(), step.recipe().run.seed)?;
    ensure!(!chosen.is_empty(), BadData, "split '{}': no image is left after the selection", params.split);
    let groups = groups_of(step, &source)?;
    let images = &found.images;
    let shape = [images.height, images.width, images.channels];
    let wanted = [params.size[0] as usize, params.size[1] as usize, params.channels as usize];
    ensure!(
        shape == wanted,
        BadData,
        "split '{}': images are {shape:?}, data.size and channels say {wanted:?}",
        params.split
    );
    let meta = PackedMeta {
        identity: step.identity().to_string(),
        split: params.split.clone(),
        source: serde_json::to_string(&params.source.0).unwrap_or_default(),
        resize_filter: "bicubic, antialiased (PIL)".into(),
        part: 0,
        parts: 1,
        class_names: classes.clone(),
        group_names: groups.as_ref().map(|(names, _)| names.clone()).unwrap_or_default(),
        bad_images: found.bad.iter().map(|bad| format!("{}: {}", bad.path.display(), bad.reason)).collect(),
        tool_version: tool_version(),
    };
    let codec = params.codec.as_ref().map_or(Ok(Codec::Raw), crate::generate::codec)?;
    let mut packed = Packed::new(meta, codec, Some(shape))?;
    for &at in &chosen {
        let position = found.positions[at];
        let group = groups.as_ref().map_or(-1, |(_, groups)| i64::from(groups[position]));
        let row = PackedRow { label: i64::from(images.labels[at]), group, index: position as u64 };
        let image = Image::new(shape[0], shape[1], shape[2], images.image(at).pixels.to_vec())?;
        packed.push(row, &codec.encode(&image)?)?;
    }
    step.commit(&step.dir().join("split.h5"), &packed.write()?)?;
    step.measured("images", all.max(1), start.elapsed());
    let labels: Vec<u32> = chosen.iter().map(|&at| images.labels[at]).collect();
    let counts = counts::of_labels(&labels, classes.len())?;
    for bad in &found.bad {
        equipoise_telemetry::warn!("left out {}: {}", bad.path.display(), bad.reason);
    }
    equipoise_telemetry::info!(
        "{}: {} images, {} left out, per class {counts:?}",
        params.split,
        chosen.len(),
        found.bad.len()
    );
    let summary = json!({ "split": params.split, "images": chosen.len(), "left_out": found.bad.len(), "counts": counts });
    step.commit_json(&step.dir().join("summary.json"), &summary)
}

/// Names of the groups, and the group of each image of the source; none if the data set or the source has no contexts.
fn groups_of(step: &Step, source: &Source) -> Result<Option<(Vec<String>, Vec<u32>)>> {
    let Some(groups) = step.groups()? else { return Ok(None) };
    let Some(grouped) = Grouped::read(source)? else { return Ok(None) };
    Ok(Some((groups.names(), grouped.groups(&groups)?)))
}
