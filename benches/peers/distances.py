"""Peer of `equipoise-bench distances`: the packages prdc and pytorch-fid on the features that --same FILE holds."""

import argparse

import numpy as np
from prdc import compute_prdc
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.numpy import load_file

import common


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["prdc", "fid"])
    parser.add_argument("--same", required=True)
    args = common.arguments(parser)
    common.prepare(args)
    same = load_file(args.same)
    real, fake = same["real"], same["fake"]
    gaussian = lambda rows: (rows.astype(np.float64).mean(0), np.cov(rows.astype(np.float64), rowvar=False))
    a, b = gaussian(real), gaussian(fake)

    def measure():
        if args.what == "fid":
            return [calculate_frechet_distance(*a, *b)]
        found = compute_prdc(real, fake, nearest_k=5)
        return [found[name] for name in ("precision", "recall", "density", "coverage")]

    values = None

    def one_round():
        nonlocal values
        values = measure()

    line = common.measure(args, len(real), one_round)
    line["values"] = [float(value) for value in values]
    line["largest_difference"] = float(np.abs(np.array(values) - same["result"]).max())
    common.report(args, args.what, {"rows": len(real), "dim": real.shape[1]}, line)


if __name__ == "__main__":
    main()
