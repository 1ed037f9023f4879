//! One PNG per image, one folder per class.

use super::{BLOCK, Checksum, Source, Staged, blocks, png};
use crate::sets::class_folder;
use equipoise_base::Result;
use equipoise_rundir::vfs::Space;
use rayon::prelude::*;

/// What the export needs at most.
pub fn space(source: &Source) -> Space {
    let folders = source.classes().len() as u64;
    let files = blocks(source.images(), source.png_bytes(), source.images() + folders + 3);
    Space { bytes: files.bytes + (folders + 3) * BLOCK + 128 * source.images(), ..files }
}

/// Writes `CLASS/INDEX.png` for every image.
pub fn write(source: &Source, staged: &Staged) -> Result<Vec<Checksum>> {
    for folder in source.classes().keys() {
        staged.create_folder(folder)?;
    }
    let mut checksums = Vec::new();
    source.for_each_shard(|entry, shard, _| {
        let folder = class_folder(entry);
        let write = |position: usize| {
            let name = format!("{folder}/{:08}.png", shard.rows()[position].index);
            staged.write(&name, &png(&shard, position)?)
        };
        let written: Result<Vec<Checksum>> = (0..shard.len()).into_par_iter().map(write).collect();
        checksums.extend(written?);
        Ok(())
    })?;
    Ok(checksums)
}
