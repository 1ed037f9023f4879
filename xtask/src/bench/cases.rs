//! What is measured, against what, and the bar (DESIGN section 6). A new benchmark is one entry here, one file in
//! `benches/src` and one in `benches/peers`.

/// A comparison or a measurement of its own.
pub struct Case {
    /// Name on the command line and in the tables.
    pub name: &'static str,
    /// What is compared, for the tables.
    pub about: &'static str,
    /// Arguments of `equipoise-bench`, or of `equipoise` where `ours` begins with it.
    pub ours: &'static [&'static str],
    /// The same work in Python, in several settings of which the fastest counts; none where a limit is the bar.
    pub peers: &'static [Peer],
    /// What counts as good.
    pub bar: Bar,
    /// Seconds that the turns may take together.
    pub seconds: f64,
}

/// A Python script with its settings.
pub struct Peer {
    /// Setting, for the tables.
    pub label: &'static str,
    /// Script in `benches/peers`.
    pub script: &'static str,
    /// Its arguments, beside those that both sides share.
    pub args: &'static [&'static str],
}

/// What counts as good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// The peer's time over ours, at least.
    Ratio(f64),
    /// Our seconds, at most.
    Seconds(f64),
    /// A number of our last line, at most, and what it is.
    Number(&'static str, f64, &'static str),
}

const fn peer(label: &'static str, script: &'static str, args: &'static [&'static str]) -> Peer {
    Peer { label, script, args }
}

/// Placeholders in arguments: `{photos}`, `{medium}` and `{scratch}` are folders, `{same}` the file through which ours
/// tells the peer what to start from, `{run}` a finished run.
pub const CASES: &[Case] = &[
    Case {
        name: "training-resnet32",
        about: "training step, ResNet-32, 32 px, batch 128, fp32, channels-last",
        ours: &["training", "--model", "resnet32", "--rounds", "1", "--warmup", "2"],
        peers: &[peer("PyTorch", "training", &["--model", "resnet32", "--rounds", "1", "--warmup", "2"])],
        bar: Bar::Ratio(1.0),
        seconds: 18.,
    },
    Case {
        name: "training-resnet50",
        about: "training step, ResNet-50, 64 px, batch 32, fp32, channels-last",
        ours: &[
            "training", "--model", "resnet50", "--size", "64", "--batch", "32", "--rounds", "1", "--warmup",
            "2",
        ],
        peers: &[peer(
            "PyTorch",
            "training",
            &["--model", "resnet50", "--size", "64", "--batch", "32", "--rounds", "1", "--warmup", "2"],
        )],
        bar: Bar::Ratio(1.0),
        seconds: 30.,
    },
    Case {
        name: "training-resnet32-bf16",
        about: "training step, ResNet-32: our precision = \"bf16\" against a plain fp32 script",
        ours: &["training", "--model", "resnet32", "--precision", "bf16", "--rounds", "1", "--warmup", "2"],
        peers: &[peer(
            "PyTorch fp32, contiguous",
            "training",
            &["--model", "resnet32", "--memory-format", "contiguous", "--rounds", "1", "--warmup", "2"],
        )],
        bar: Bar::Ratio(2.0),
        seconds: 18.,
    },
    Case {
        name: "training-resnet50-bf16",
        about: "training step, ResNet-50, 64 px: our precision = \"bf16\" against a plain fp32 script",
        ours: &[
            "training",
            "--model",
            "resnet50",
            "--size",
            "64",
            "--batch",
            "32",
            "--precision",
            "bf16",
            "--rounds",
            "1",
            "--warmup",
            "2",
        ],
        peers: &[peer(
            "PyTorch fp32, contiguous",
            "training",
            &[
                "--model",
                "resnet50",
                "--size",
                "64",
                "--batch",
                "32",
                "--memory-format",
                "contiguous",
                "--rounds",
                "1",
                "--warmup",
                "2",
            ],
        )],
        bar: Bar::Ratio(2.0),
        seconds: 30.,
    },
    Case {
        name: "end-to-end-memory",
        about: "training with its input, ResNet-32, CIFAR-sized images in memory, crop and flip, fp32",
        ours: &["end-to-end", "--model", "resnet32", "--rounds", "2", "--warmup", "2"],
        peers: &[
            peer("0 workers", "end_to_end", &["--model", "resnet32", "--rounds", "2", "--warmup", "2"]),
            peer(
                "1 worker",
                "end_to_end",
                &["--model", "resnet32", "--workers", "1", "--rounds", "2", "--warmup", "2"],
            ),
            peer(
                "2 workers",
                "end_to_end",
                &["--model", "resnet32", "--workers", "2", "--rounds", "2", "--warmup", "2"],
            ),
        ],
        bar: Bar::Ratio(1.3),
        seconds: 40.,
    },
    Case {
        name: "end-to-end-photos",
        about: "training with its input, ResNet-32, JPEG files to random resized crops of 32 px, fp32",
        ours: &[
            "end-to-end",
            "--model",
            "resnet32",
            "--photos",
            "{photos}",
            "--rounds",
            "1",
            "--warmup",
            "2",
        ],
        peers: &[
            peer(
                "0 workers",
                "end_to_end",
                &["--model", "resnet32", "--photos", "{photos}", "--rounds", "1", "--warmup", "2"],
            ),
            peer(
                "1 worker",
                "end_to_end",
                &[
                    "--model",
                    "resnet32",
                    "--photos",
                    "{photos}",
                    "--workers",
                    "1",
                    "--rounds",
                    "1",
                    "--warmup",
                    "2",
                ],
            ),
            peer(
                "2 workers",
                "end_to_end",
                &[
                    "--model",
                    "resnet32",
                    "--photos",
                    "{photos}",
                    "--workers",
                    "2",
                    "--rounds",
                    "1",
                    "--warmup",
                    "2",
                ],
            ),
        ],
        bar: Bar::Ratio(1.3),
        seconds: 40.,
    },
    Case {
        name: "sampling-pixel",
        about: "pixel sampling, the committed generator, batch 16, 10 steps, guidance 1.5, fp32",
        ours: &[
            "sampling",
            "--batch",
            "16",
            "--rounds",
            "1",
            "--warmup",
            "1",
            "--profile",
            "--dump",
            "{same}",
        ],
        peers: &[peer(
            "PyTorch loop",
            "sampling",
            &["--batch", "16", "--rounds", "1", "--warmup", "1", "--profile", "--same", "{same}"],
        )],
        bar: Bar::Ratio(1.0),
        seconds: 20.,
    },
    Case {
        name: "sampling-pixel-feedback",
        about: "the same with a classifier's feedback at 8 of 10 steps",
        ours: &[
            "sampling",
            "--feedback",
            "--batch",
            "16",
            "--rounds",
            "1",
            "--warmup",
            "1",
            "--profile",
            "--dump",
            "{same}",
        ],
        peers: &[peer(
            "PyTorch loop",
            "sampling",
            &[
                "--feedback",
                "--batch",
                "16",
                "--rounds",
                "1",
                "--warmup",
                "1",
                "--profile",
                "--same",
                "{same}",
            ],
        )],
        bar: Bar::Ratio(1.0),
        seconds: 18.,
    },
    Case {
        name: "latent-tiny",
        about: "unCLIP sampling, tiny networks (the oracle's folder), batch 4, 10 steps, fp32",
        ours: &[
            "latent",
            "--folder",
            "{tiny}",
            "--rounds",
            "2",
            "--warmup",
            "1",
            "--profile",
            "--dump",
            "{same}",
        ],
        peers: &[
            peer(
                "diffusers, channels-last",
                "latent",
                &["--folder", "{tiny}", "--rounds", "2", "--warmup", "1", "--profile", "--same", "{same}"],
            ),
            peer(
                "diffusers, contiguous",
                "latent",
                &[
                    "--folder",
                    "{tiny}",
                    "--memory-format",
                    "contiguous",
                    "--rounds",
                    "2",
                    "--warmup",
                    "1",
                    "--same",
                    "{same}",
                ],
            ),
        ],
        bar: Bar::Ratio(1.3),
        seconds: 12.,
    },
    Case {
        name: "latent-tiny-feedback",
        about: "the same with feedback through decoder and network at every 2nd step",
        ours: &[
            "latent",
            "--folder",
            "{tiny}",
            "--every",
            "2",
            "--rounds",
            "2",
            "--warmup",
            "1",
            "--profile",
            "--dump",
            "{same}",
        ],
        peers: &[
            peer(
                "diffusers, channels-last",
                "latent",
                &[
                    "--folder",
                    "{tiny}",
                    "--every",
                    "2",
                    "--rounds",
                    "2",
                    "--warmup",
                    "1",
                    "--profile",
                    "--same",
                    "{same}",
                ],
            ),
            peer(
                "diffusers, contiguous",
                "latent",
                &[
                    "--folder",
                    "{tiny}",
                    "--every",
                    "2",
                    "--memory-format",
                    "contiguous",
                    "--rounds",
                    "2",
                    "--warmup",
                    "1",
                    "--same",
                    "{same}",
                ],
            ),
        ],
        bar: Bar::Ratio(1.3),
        seconds: 16.,
    },
    Case {
        name: "latent-medium",
        about: "unCLIP sampling, 60M-parameter U-Net, 64 px, batch 4, 4 steps, fp32",
        ours: &[
            "latent",
            "--folder",
            "{medium}",
            "--steps",
            "4",
            "--rounds",
            "1",
            "--warmup",
            "0",
            "--profile",
            "--dump",
            "{same}",
        ],
        peers: &[
            peer(
                "diffusers, channels-last",
                "latent",
                &[
                    "--folder",
                    "{medium}",
                    "--steps",
                    "4",
                    "--rounds",
                    "1",
                    "--warmup",
                    "1",
                    "--profile",
                    "--same",
                    "{same}",
                ],
            ),
            peer(
                "diffusers, contiguous",
                "latent",
                &[
                    "--folder",
                    "{medium}",
                    "--steps",
                    "4",
                    "--memory-format",
                    "contiguous",
                    "--rounds",
                    "1",
                    "--warmup",
                    "1",
                    "--same",
                    "{same}",
                ],
            ),
        ],
        bar: Bar::Ratio(1.0),
        seconds: 40.,
    },
    Case {
        name: "latent-medium-feedback",
        about: "the same with feedback through decoder and network at every 2nd step",
        ours: &[
            "latent",
            "--folder",
            "{medium}",
            "--steps",
            "4",
            "--every",
            "2",
            "--rounds",
            "1",
            "--warmup",
            "0",
            "--profile",
            "--dump",
            "{same}",
        ],
        peers: &[peer(
            "diffusers, channels-last",
            "latent",
            &[
                "--folder",
                "{medium}",
                "--steps",
                "4",
                "--every",
                "2",
                "--rounds",
                "1",
                "--warmup",
                "1",
                "--profile",
                "--same",
                "{same}",
            ],
        )],
        bar: Bar::Ratio(1.0),
        seconds: 45.,
    },
    Case {
        name: "decode",
        about: "JPEG files to augmented 224 px training images, on one core",
        ours: &["decode", "--photos", "{photos}", "--rounds", "1", "--warmup", "1"],
        peers: &[peer(
            "torchvision and PIL",
            "decode",
            &["--photos", "{photos}", "--rounds", "1", "--warmup", "1"],
        )],
        bar: Bar::Ratio(3.0),
        seconds: 8.,
    },
    Case {
        name: "shards",
        about: "shard commit, 64 raw images of 512 px: with checksums, verification, fsync and rename",
        ours: &["shards", "--folder", "{scratch}", "--rounds", "1", "--warmup", "1"],
        peers: &[peer(
            "plain h5py and fsync",
            "shards",
            &["--folder", "{scratch}", "--rounds", "1", "--warmup", "1"],
        )],
        bar: Bar::Ratio(1. / 1.1),
        seconds: 12.,
    },
    Case {
        name: "checkpoint-save",
        about: "checkpoint of ResNet-50 and momentum, hashed, verified and fsynced",
        ours: &["checkpoint", "save", "--folder", "{scratch}/ours", "--rounds", "1", "--warmup", "1"],
        peers: &[peer(
            "torch.save and fsync",
            "checkpoint",
            &["save", "--folder", "{scratch}", "--rounds", "1", "--warmup", "1"],
        )],
        bar: Bar::Ratio(1. / 1.2),
        seconds: 16.,
    },
    Case {
        name: "checkpoint-restore",
        about: "the same restored, hashes verified",
        ours: &["checkpoint", "restore", "--folder", "{scratch}/ours", "--rounds", "1", "--warmup", "1"],
        peers: &[peer(
            "torch.load",
            "checkpoint",
            &["restore", "--folder", "{scratch}", "--rounds", "1", "--warmup", "1"],
        )],
        bar: Bar::Ratio(1. / 1.3),
        seconds: 10.,
    },
    Case {
        name: "checkpoint-stall",
        about: "what a checkpoint every 100 steps costs a ResNet-50 training that goes on meanwhile",
        ours: &["checkpoint", "stall", "--folder", "{scratch}/ours", "--rounds", "1", "--warmup", "0"],
        peers: &[],
        bar: Bar::Number("share", 0.01, "of the training time"),
        seconds: 30.,
    },
    Case {
        name: "prdc",
        about: "precision, recall, density, coverage of 5,000 against 5,000 images, 2,048 features",
        ours: &["distances", "prdc", "--rounds", "1", "--warmup", "0", "--dump", "{same}"],
        peers: &[peer("prdc", "distances", &["prdc", "--rounds", "1", "--warmup", "0", "--same", "{same}"])],
        bar: Bar::Ratio(3.0),
        seconds: 30.,
    },
    Case {
        name: "fid",
        about: "FID from means and covariances of 2,048 features",
        ours: &["distances", "fid", "--rounds", "1", "--warmup", "0", "--dump", "{same}"],
        peers: &[peer(
            "pytorch-fid",
            "distances",
            &["fid", "--rounds", "1", "--warmup", "0", "--same", "{same}"],
        )],
        bar: Bar::Ratio(5.0),
        seconds: 40.,
    },
    Case {
        name: "planning",
        about: "planning a million images of 1,000 classes and assigning them to 1,024 ranks",
        ours: &["planning", "--rounds", "1", "--warmup", "1"],
        peers: &[],
        bar: Bar::Seconds(1.0),
        seconds: 4.,
    },
    Case {
        name: "front-end-help",
        about: "`equipoise --help`, started and ended",
        ours: &["equipoise", "--help"],
        peers: &[],
        bar: Bar::Seconds(0.02),
        seconds: 2.,
    },
    Case {
        name: "front-end-status",
        about: "`equipoise status` of a finished run",
        ours: &["equipoise", "status", "{run}"],
        peers: &[],
        bar: Bar::Seconds(0.02),
        seconds: 2.,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_scripts_are_there() {
        let mut names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
        for peer in CASES.iter().flat_map(|case| case.peers) {
            let script = crate::shell::root().join(format!("benches/peers/{}.py", peer.script));
            assert!(script.exists(), "{}", script.display());
        }
    }

    #[test]
    fn a_ratio_needs_a_peer() {
        for case in CASES {
            assert_eq!(matches!(case.bar, Bar::Ratio(_)), !case.peers.is_empty(), "{}", case.name);
        }
    }
}
