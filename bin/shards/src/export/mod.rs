//! `equipoise shards export`: a set in the layouts that other tools read.
//!
//! Everything is written into a hidden folder beside the destination, which takes the destination's name once it is
//! complete and on disk: an export that fails or is killed leaves nothing under that name.

mod image_folder;
mod tar;
mod web_dataset;

use crate::output::{self, counted};
use crate::sets::{INDEX, Set, class_folder, one_set};
use clap::Subcommand;
use equipoise_base::{Error, ExitCode, Result, ResultExt, bail, ensure};
use equipoise_rundir::vfs::Space;
use equipoise_rundir::{RealFs, Vfs, create_dirs, scratch, space};
use equipoise_shards::codec::encode_png;
use equipoise_shards::{Codec, Expect, ImageShard, ShardReader, verify_shard_bytes};
use equipoise_stages::{ShardEntry, ShardIndex};
use equipoise_telemetry::Progress;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Labels by class folder; in every export.
const CLASSES: &str = "classes.json";
/// What `sha256sum --check` reads; in every export.
const CHECKSUMS: &str = "checksums.sha256";
/// Space is given out in blocks of this size by most file systems.
const BLOCK: u64 = 4096;

/// Write a set as an image folder or as webdataset archives.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise shards export imagefolder runs/quickstart out/ --set feedback.k0\n  \
    equipoise shards export webdataset runs/quickstart /scratch/me/wds --set feedback.k0 --images-per-tar 1000\n\n\
    OUT must be new or empty; it appears when it is complete. `cd OUT && sha256sum --quiet --check checksums.sha256` \
    checks it. classes.json holds the labels, which torchvision's ImageFolder would number alphabetically.")]
pub struct Args {
    #[command(subcommand)]
    layout: LayoutArgs,
}

#[derive(Debug, Subcommand)]
enum LayoutArgs {
    /// One file per image: OUT/CLASS/INDEX.png.
    #[command(name = "imagefolder")]
    ImageFolder(Common),
    /// Tar archives of shuffled .png, .cls and .json files.
    #[command(name = "webdataset")]
    WebDataset {
        #[command(flatten)]
        common: Common,
        /// Images per archive; so many are in memory at once.
        #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
        images_per_tar: u32,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Folder to make; must not hold anything.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The set; may be left out if there is only one.
    #[arg(long, value_name = "NAME.kSEED")]
    set: Option<String>,
}

/// Exports a set.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (common, images_per_tar) = match &args.layout {
        LayoutArgs::ImageFolder(common) => (common, None),
        LayoutArgs::WebDataset { common, images_per_tar } => (common, Some(u64::from(*images_per_tar))),
    };
    let source = Source::open(one_set(&common.run, common.set.as_ref())?)?;
    let out = destination(&common.out)?;
    let needed = match images_per_tar {
        None => image_folder::space(&source),
        Some(per_tar) => web_dataset::space(&source, per_tar),
    };
    space::require(&RealFs, &out, needed)
        .map_err(|error| error.next("free some space, or export to another file system"))?;
    let staged = Staged::new(&out)?;
    let checksums = match images_per_tar {
        None => image_folder::write(&source, &staged)?,
        Some(per_tar) => web_dataset::write(&source, &staged, per_tar)?,
    };
    staged.finish(checksums, &source)?;
    let failed: usize = source.index.shards.iter().map(|entry| entry.failed.len()).sum();
    let lacking = if failed > 0 { format!(" ({failed} could not be made)") } else { String::new() };
    output::line(format!("{}{lacking}: {}", counted(source.images(), "image"), out.display()));
    Ok(ExitCode::Done)
}

/// The folder to make, absolute.
fn destination(out: &Path) -> Result<PathBuf> {
    let absolute = out.canonicalize().or_else(|_| std::path::absolute(out));
    let out = absolute.map_err(|error| Error::io("find", out, error))?;
    let occupied = match RealFs.metadata(&out) {
        Ok(metadata) if metadata.is_dir => {
            let mut entries = std::fs::read_dir(&out).map_err(|error| Error::io("list", &out, error))?;
            entries.next().is_some()
        }
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io("read", &out, error)),
    };
    ensure!(!occupied, Usage, "{}: exists and is not an empty folder: nothing is overwritten", out.display());
    Ok(out)
}

/// A complete set to read from.
struct Source {
    set: Set,
    index: ShardIndex,
    /// [height, width, channels]
    shape: [usize; 3],
}

impl Source {
    fn open(set: Set) -> Result<Self> {
        let index = set.index()?;
        let Some(first) = index.shards.iter().find(|entry| entry.images > 0) else {
            bail!(BadData, "{}: there are no images to export", set.folder.display());
        };
        let shape = ShardReader::open(&set.shard(first)?)?.meta().shape;
        Ok(Self { set, index, shape })
    }

    fn images(&self) -> u64 {
        self.index.shards.iter().map(|entry| entry.images).sum()
    }

    /// Most bytes that an image takes as PNG, deflate's worst case included.
    fn png_bytes(&self) -> u64 {
        let [height, width, channels] = self.shape.map(|side| side as u64);
        let samples = height * (width * channels + 1);
        samples + samples / 1000 + 1024
    }

    /// Labels by class folder.
    fn classes(&self) -> BTreeMap<String, u32> {
        self.index.shards.iter().map(|entry| (class_folder(entry), entry.class)).collect()
    }

    /// Reads shard after shard, each verified against the index. `each` also gets the number of images before it.
    fn for_each_shard(&self, mut each: impl FnMut(&ShardEntry, ImageShard, u64) -> Result<()>) -> Result<()> {
        let mut progress = Progress::new("export", "images", 0, self.images(), true);
        let mut before = 0;
        for entry in &self.index.shards {
            let shard = self.read(entry)?;
            ensure!(
                shard.len() as u64 == entry.images,
                BadData,
                "{}: lists {} images of {}, which holds {}",
                self.set.folder.join(INDEX).display(),
                entry.images,
                entry.path.display(),
                shard.len()
            );
            each(entry, shard, before)?;
            before += entry.images;
            progress.set(before);
        }
        Ok(())
    }

    fn read(&self, entry: &ShardEntry) -> Result<ImageShard> {
        let path = self.set.shard(entry)?;
        let read = RealFs.read(&path);
        let bytes = read.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::data(format!("{}: no such file", path.display())),
            _ => Error::io("read", &path, error),
        })?;
        let expect = Expect {
            identity: Some(self.index.identity.to_string()),
            class: Some(entry.class),
            file_xxh3: u64::from_str_radix(&entry.xxh3, 16).ok(),
            ..Expect::default()
        };
        verify_shard_bytes(&path.display().to_string(), &bytes, &expect)
            .map_err(|error| error.next("equipoise shards verify RUN"))
    }
}

/// The PNG file of an image: as stored, or encoded.
fn png(shard: &ImageShard, position: usize) -> Result<Vec<u8>> {
    match shard.meta().codec {
        Codec::Png => Ok(shard.images().stored(position).to_vec()),
        _ => encode_png(&shard.images().decode(position)?),
    }
}

/// A folder under construction; removed unless it is finished.
struct Staged {
    folder: PathBuf,
    out: PathBuf,
}

impl Staged {
    fn new(out: &Path) -> Result<Self> {
        if let Some(parent) = out.parent() {
            create_dirs(&RealFs, parent)?;
        }
        let staged = Self { folder: scratch::sibling(out, None)?, out: out.to_owned() };
        staged.create_folder("")?;
        Ok(staged)
    }

    fn create_folder(&self, relative: &str) -> Result<()> {
        let path = self.folder.join(relative);
        RealFs.create_dir(&path).map_err(|error| Error::io("create the folder", &path, error))
    }

    /// Writes a new file and returns its checksum. It is synced with all others in the end.
    fn write(&self, relative: &str, bytes: &[u8]) -> Result<Checksum> {
        let path = self.folder.join(relative);
        let written = RealFs.create_new(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.close()
        });
        written.map_err(|error| Error::io("write", &path, error))?;
        let digest = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Checksum { path: relative.to_string(), digest })
    }

    /// Adds labels and checksums, syncs, and gives the folder its name.
    fn finish(self, mut checksums: Vec<Checksum>, source: &Source) -> Result<()> {
        let classes = serde_json::to_vec_pretty(&source.classes()).or_exit(ExitCode::Bug, CLASSES)?;
        checksums.push(self.write(CLASSES, &classes)?);
        checksums.sort_by(|a, b| a.path.cmp(&b.path));
        let lines: Vec<String> =
            checksums.iter().map(|Checksum { path, digest }| format!("{digest}  {path}\n")).collect();
        self.write(CHECKSUMS, lines.concat().as_bytes())?;
        sync_file_system(&self.folder)?;
        RealFs.rename(&self.folder, &self.out).map_err(|error| Error::io("rename to", &self.out, error))?;
        let parent = self.out.parent().unwrap_or(&self.out);
        RealFs.sync_dir(parent).map_err(|error| Error::io("sync the directory", parent, error))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Nothing is there any more if it was finished.
        let _ = RealFs.remove_dir_all(&self.folder);
    }
}

/// A file and its SHA-256.
struct Checksum {
    path: String,
    digest: String,
}

/// Returns once everything written to the file system of `folder` is on disk: one call instead of one per image.
fn sync_file_system(folder: &Path) -> Result<()> {
    let fail = |error| Error::io("sync", folder, error);
    let open = std::fs::File::open(folder).map_err(fail)?;
    // SAFETY: the descriptor is open for the whole call.
    match unsafe { libc::syncfs(open.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(fail(std::io::Error::last_os_error())),
    }
}

/// `bytes` in whole blocks, for `files` files.
fn blocks(files: u64, bytes: u64, inodes: u64) -> Space {
    Space { bytes: files.saturating_mul(bytes.div_ceil(BLOCK) * BLOCK), inodes }
}
