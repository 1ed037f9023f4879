"""Peer of `equipoise-bench end-to-end`: the same step fed by a DataLoader with torchvision's transforms on PIL images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

import common
import training

IMAGES = 10_000
NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class InMemory(torch.utils.data.Dataset):
    """As torchvision's CIFAR10: pixels in one array, a PIL image made of them at each visit."""

    def __init__(self):
        self.pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
        )

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.pixels[index])), index % 10


class Photos(torch.utils.data.Dataset):
    """As torchvision's ImageFolder: a file opened and decoded at each visit."""

    def __init__(self, folder, size):
        self.files = sorted(Path(folder).glob("*.jpg"))
        self.transform = transforms.Compose(
            [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with open(self.files[index], "rb") as file:
            return self.transform(Image.open(file).convert("RGB")), index % 10


def endless(loader):
    while True:
        yield from loader


def main():
    parser = training.options()
    parser.add_argument("--photos")
    parser.add_argument("--workers", type=int, default=0)
    args = common.arguments(parser)
    common.prepare(args)
    data = Photos(args.photos, args.size) if args.photos else InMemory()
    several = {"persistent_workers": True} if args.workers else {}
    loader = torch.utils.data.DataLoader(
        data, args.batch, shuffle=True, drop_last=True, num_workers=args.workers, pin_memory=args.device == "cuda", **several
    )
    batches, step = endless(loader), training.stepper(args)
    loss = None

    def one_round():
        nonlocal loss
        images, labels = next(batches)
        loss = step(images.to(args.device, non_blocking=True), labels.to(args.device, non_blocking=True))

    line = common.measure(args, args.batch, one_round)
    line["loss"] = loss.item()
    case = {"model": args.model, "size": args.size, "batch": args.batch, "precision": args.precision}
    case |= {"photos": bool(args.photos), "workers": args.workers, "memory_format": args.memory_format}
    common.report(args, "end-to-end", case, line)


if __name__ == "__main__":
    main()
