"""Peer of `equipoise-bench checkpoint`: torch.save and an fsync, torch.load; neither verifies anything."""

import argparse
import os
from pathlib import Path

import torch
import torchvision

import common


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["save", "restore"])
    parser.add_argument("--folder", required=True)
    args = common.arguments(parser)
    common.prepare(args)
    model = torchvision.models.resnet50(weights=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, scratch = folder / "peer.pt", folder / "peer.pt.new"

    def save():
        with open(scratch, "wb") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)

    def restore():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    if args.what == "restore":
        save()
    line = common.measure(args, 1, save if args.what == "save" else restore)
    path.unlink()
    common.report(args, f"checkpoint {args.what}", {"model": "resnet50", "files": 1}, line)


if __name__ == "__main__":
    main()
