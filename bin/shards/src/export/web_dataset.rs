//! Tar archives as the webdataset library reads them: per image a `.png`, a `.cls` and a `.json` file.
//!
//! Shards hold one class each, but who reads archives in sequence needs the classes mixed. Images therefore get places
//! in a random order of the whole set: a first pass over the shards sorts them into bins, one per archive, and a second
//! one puts each bin in order. Only one shard or one archive is in memory at a time.

use super::{Checksum, Source, Staged, blocks, png, tar};
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode, Result, ResultExt, bail};
use equipoise_rundir::vfs::Space;
use equipoise_rundir::{RealFs, Vfs};
use equipoise_shards::ImageShard;
use equipoise_stages::ShardEntry;
use rayon::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

/// Bytes in front of each image in a bin: its place in the archive, and its length.
const FRAME: usize = 16;

/// What the export needs at most: all bins and one archive.
pub fn space(source: &Source, per_tar: u64) -> Space {
    let archives = source.images().div_ceil(per_tar);
    let image = FRAME as u64 + 6 * tar::BLOCK + source.png_bytes() + 1024;
    blocks(archives + 1, per_tar.min(source.images()) * image, archives + 5)
}

/// Writes the archives.
pub fn write(source: &Source, staged: &Staged, per_tar: u64) -> Result<Vec<Checksum>> {
    let images = usize::try_from(source.images()).unwrap_or(usize::MAX);
    let places = Key::new(0, "export").stream().permutation(images);
    source.for_each_shard(|entry, shard, before| {
        let framed = |position: usize| -> Result<(u64, Vec<u8>)> {
            let place = places[before as usize + position] as u64;
            let members = members(source, entry, &shard, position)?;
            let frame = [place.to_le_bytes(), (members.len() as u64).to_le_bytes()].concat();
            Ok((place / per_tar, [frame, members].concat()))
        };
        let framed: Result<Vec<(u64, Vec<u8>)>> = (0..shard.len()).into_par_iter().map(framed).collect();
        let mut bins: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (archive, bytes) in framed? {
            bins.entry(archive).or_default().extend(bytes);
        }
        bins.into_iter().try_for_each(|(archive, bytes)| append(staged, archive, &bytes))
    })?;
    let archives = source.images().div_ceil(per_tar);
    (0..archives).map(|archive| finish(source, staged, archive)).collect()
}

/// The three files of an image.
fn members(source: &Source, entry: &ShardEntry, shard: &ImageShard, position: usize) -> Result<Vec<u8>> {
    let (row, meta) = (shard.rows()[position], shard.meta());
    let about = json!({
        "set": source.set.name,
        "identity": meta.identity,
        "class": meta.class_name,
        "label": meta.class,
        "index": row.index,
        "group": row.group,
        // As text: JSON readers round large numbers.
        "seed": format!("{:016x}", row.seed),
        "condition": row.condition,
        "flags": row.flags.0,
        "criterion_name": meta.criterion,
        "criterion": shard.criterion(position),
        "xxh3": format!("{:016x}", shard.hashes()[position]),
    });
    let about = serde_json::to_vec(&about).or_exit(ExitCode::Bug, "an image as JSON")?;
    // The library takes what stands before the first dot for the name of the image, so there is none in it.
    let name = format!("{:05}-{:08}", entry.class, row.index);
    let files = [
        tar::member(&format!("{name}.png"), &png(shard, position)?),
        tar::member(&format!("{name}.cls"), entry.class.to_string().as_bytes()),
        tar::member(&format!("{name}.json"), &about),
    ];
    Ok(files.concat())
}

fn bin_name(archive: u64) -> String {
    format!(".bin-{archive:06}")
}

fn append(staged: &Staged, archive: u64, bytes: &[u8]) -> Result<()> {
    let path = staged.folder.join(bin_name(archive));
    let written = RealFs.append(&path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.close()
    });
    written.map_err(|error| Error::io("write", &path, error))
}

/// Turns a bin into an archive.
fn finish(source: &Source, staged: &Staged, archive: u64) -> Result<Checksum> {
    let path = staged.folder.join(bin_name(archive));
    let bin = RealFs.read(&path).map_err(|error| Error::io("read", &path, error))?;
    let mut images = BTreeMap::new();
    let mut rest = bin.as_slice();
    while !rest.is_empty() {
        let Some((place, members, behind)) = unframe(rest) else {
            bail!(Io, "{}: reads back other bytes than were written", path.display());
        };
        images.insert(place, members);
        rest = behind;
    }
    let mut bytes = images.into_values().collect::<Vec<_>>().concat();
    bytes.extend_from_slice(&tar::END);
    let checksum = staged.write(&format!("{}-{archive:06}.tar", source.set.name), &bytes)?;
    RealFs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
    Ok(checksum)
}

/// Place and members of the first image, and what is behind it.
fn unframe(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let end = FRAME.checked_add(usize::try_from(number(8)?).ok()?)?;
    Some((number(0)?, bytes.get(FRAME..end)?, &bytes[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_and_torn_ones_found() {
        let frame = [7u64.to_le_bytes(), 3u64.to_le_bytes()].concat();
        let bytes = [&frame[..], b"abcrest"].concat();
        assert_eq!(unframe(&bytes), Some((7, &b"abc"[..], &b"rest"[..])));
        assert_eq!(unframe(&bytes[..18]), None);
        assert_eq!(unframe(&[255; 40]), None);
    }
}
