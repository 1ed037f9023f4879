"""Peer of `equipoise-bench decode`: PIL and torchvision's transforms on one core."""

import argparse

import common
import end_to_end


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    args = common.arguments(parser)
    common.prepare(args)
    data, at = end_to_end.Photos(args.photos, args.size), 0

    def one_round():
        nonlocal at
        for index in range(at, at + args.batch):
            data[index % len(data)]
        at += args.batch

    case = {"photos": len(data), "size": args.size, "batch": args.batch}
    common.report(args, "decode", case, common.measure(args, args.batch, one_round))


if __name__ == "__main__":
    main()
