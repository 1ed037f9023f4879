"""Peer of `equipoise-bench shards`: a plain h5py file with the same chunks, and an fsync."""

import argparse
import os
from pathlib import Path

import h5py
import numpy as np

import common


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    args = common.arguments(parser)
    common.prepare(args)
    shape = (args.size, args.size, 3)
    images = np.random.default_rng(0).integers(0, 256, (args.images, *shape), dtype=np.uint8)
    path = Path(args.folder) / "peer.h5"

    def one_round():
        with h5py.File(path, "w") as file:
            stored = file.create_dataset("images", images.shape, "u1", chunks=(1, *shape))
            for index, image in enumerate(images):
                stored[index] = image
            for name in ("label", "index", "seed", "condition"):
                file.create_dataset(name, data=np.arange(args.images))
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    line = common.measure(args, args.images, one_round)
    path.unlink()
    common.report(args, "shards", {"images": args.images, "size": args.size}, line)


if __name__ == "__main__":
    main()
