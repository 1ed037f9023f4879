#!/usr/bin/env python3
"""Makes the long-tailed Fashion-MNIST of this folder from the four original files; standard library only.

    python3 make.py --source DIR      # DIR holds train-images-idx3-ubyte.gz and the other three

The result is the same byte for byte wherever it runs with the same zlib.

Of each class's 6,000 training images, in file order:
    train   images 0 .. n_c             n_c = 2000 * (1/100)^(r/9), r the rank of the class in ORDER
    extra   images n_c .. max(n_c, 400) held-out real images that bring each class to 400: the ceiling that
                                        synthetic images can reach
    (2000 .. 5800 are left to pretraining the generator)
    val     images 5800 .. 6000
The test set is the original one.
"""

import argparse
import gzip
import shutil
import struct
from pathlib import Path

# Class with rank r: the easy classes are the head, those that a classifier confuses most are the tail.
ORDER = [9, 1, 8, 5, 7, 3, 0, 4, 2, 6]
HEAD, IMBALANCE_FACTOR, BALANCE_TO = 2000, 100, 400
VAL = range(5800, 6000)
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SIDE = 28


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the original files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    options = parser.parse_args()

    images = read(options.source / "train-images-idx3-ubyte.gz", 16)
    labels = read(options.source / "train-labels-idx1-ubyte.gz", 8)
    members = [[i for i, label in enumerate(labels) if label == c] for c in range(len(NAMES))]

    tail = 1.0 / IMBALANCE_FACTOR
    counts = [0] * len(NAMES)
    for rank, c in enumerate(ORDER):
        counts[c] = int(HEAD * tail ** (rank / (len(NAMES) - 1)))
    splits = {
        "train": [range(n) for n in counts],
        "extra": [range(n, max(n, BALANCE_TO)) for n in counts],
        "val": [VAL for _ in counts],
    }
    for split, ranges in splits.items():
        chosen = sorted(members[c][i] for c, within in enumerate(ranges) for i in within)
        pixels = b"".join(images[i * SIDE * SIDE : (i + 1) * SIDE * SIDE] for i in chosen)
        write(options.out / f"{split}-images.idx.gz", struct.pack(">IIII", 0x803, len(chosen), SIDE, SIDE) + pixels)
        write(options.out / f"{split}-labels.idx.gz", struct.pack(">II", 0x801, len(chosen)) + bytes(labels[i] for i in chosen))
        print(f"{split:<6}{len(chosen):>6}  per class {[len(within) for within in ranges]}")
    for part, dimensions in (("images", 3), ("labels", 1)):
        shutil.copyfile(options.source / f"t10k-{part}-idx{dimensions}-ubyte.gz", options.out / f"test-{part}.idx.gz")
    (options.out / "classes.txt").write_text("\n".join(NAMES) + "\n")


def read(path, header):
    """The bytes behind the header of an IDX file."""
    return gzip.decompress(path.read_bytes())[header:]


def write(path, data):
    """Compressed, without name or time, so that equal content means an equal file."""
    path.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
