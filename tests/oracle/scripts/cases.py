"""Our own cases of the numerical oracle: edges that the copied ones leave out. `cargo xtask oracle` runs this.

Each function makes one case from a fixed seed, as `tests/oracle/README.md` lays it out, with established packages or with
formulas in plain NumPy; what a second formula finds is under `verified`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy import linalg
from sklearn.metrics import matthews_corrcoef, normalized_mutual_info_score

CASES = []


def case(kind, name, about, reference, tolerance=(1e-9, 1e-10)):
    def register(make):
        CASES.append((kind, name, about, reference, tolerance, make))
        return make

    return register


def scalar(value):
    return np.array([value], dtype=np.float64)


def moments(features):
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


# --- stats -------------------------------------------------------------------------------------------------------------


@case("stats", "ours_far_from_zero", "One sample a chunk, classes of 0, 1 and 2 samples, all values near a million.",
      "numpy, two passes", (1e-7, 1e-8))
def stats_far_from_zero():
    rng = np.random.default_rng(1)
    counts, dim, eps = [0, 1, 2, 17, 30], 4, 1e-2
    label = rng.permutation(np.repeat(np.arange(5), counts)).astype(np.int64)
    features = 1e6 + rng.normal(size=(len(label), dim)) * [1.0, 0.1, 3.0, 1.0]
    query_label = np.array([1, 2, 3, 4, 4], dtype=np.int64)
    query = 1e6 + rng.normal(size=(5, dim))
    mean, cov = np.zeros((5, dim)), np.zeros((5, dim, dim))
    for c in range(5):
        own = features[label == c]
        if len(own) > 0:
            mean[c] = own.mean(0)
        if len(own) > 1:
            cov[c] = moments(own)[1]
    shrunk = cov + eps * np.eye(dim)
    inverse, logdet = np.linalg.inv(shrunk), np.linalg.slogdet(shrunk)[1]
    away = query - mean[query_label]
    grad = np.einsum("mij,mj->mi", inverse[query_label], away)
    hardness = 0.5 * ((away * grad).sum(1) + logdet[query_label] + dim * np.log(2 * np.pi))
    second = max(np.abs(np.cov(features[label == c].T) - cov[c]).max() for c in (2, 3, 4))
    return {
        "params": {"num_classes": 5, "eps": eps, "chunks": [1] * len(label)},
        "inputs": {"features": features, "label": label, "query": query, "query_label": query_label},
        "expected": {"count": np.array(counts, dtype=np.int64), "mean": mean, "cov": cov, "cov_inv": inverse,
                     "logdet": logdet, "hardness": hardness, "hardness_grad": grad},
        # Of values near a million a mean keeps 1e-10, and differences of it are divided by eps.
        "tolerances": {"mean": {"rtol": 1e-13, "atol": 1e-9}, "hardness": {"rtol": 1e-6, "atol": 1e-6},
                       "hardness_grad": {"rtol": 1e-6, "atol": 1e-6}, "cov": {"rtol": 1e-7, "atol": 1e-8},
                       "cov_inv": {"rtol": 1e-6, "atol": 1e-6}},
        "verified": {"np.cov": float(second)},
    }


# --- metrics -----------------------------------------------------------------------------------------------------------


def fid(real, fake):
    (mu1, s1), (mu2, s2) = moments(real), moments(fake)
    a, b = real - mu1, fake - mu2
    cross = linalg.svdvals(a @ b.T / np.sqrt((len(a) - 1) * (len(b) - 1))).sum()
    value = ((mu1 - mu2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    root = np.trace(linalg.sqrtm(s1 @ s2)).real
    sqrtm = ((mu1 - mu2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root
    return {
        "params": {"op": "fid"},
        "inputs": {"real": real, "fake": fake},
        "expected": {"mu_real": mu1, "cov_real": s1, "mu_fake": mu2, "cov_fake": s2, "fid": scalar(value),
                     "fid_sqrtm": scalar(sqrtm)},
        "tolerances": {"fid_sqrtm": {"rtol": 1e-6, "atol": 1e-6}},
        "verified": {"sqrtm": float(abs(sqrtm - value))},
    }


@case("metrics", "ours_fid_correlated", "FID of strongly correlated features of very different scales.", "numpy, scipy")
def fid_correlated():
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(6, 6)) * np.logspace(-2, 1, 6)
    return fid(rng.normal(size=(90, 6)) @ mix, rng.normal(size=(70, 6)) @ mix.T * 0.3 + 0.5)


def kth(points, k):
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    return np.sort(distances, axis=1)[:, k]


@case("metrics", "ours_prdc_duplicates", "PRDC with points that occur twice: radii of zero and distances equal to a radius.",
      "numpy, the prdc package's formulas")
def prdc_duplicates():
    rng = np.random.default_rng(3)
    real = rng.integers(0, 4, size=(24, 2)).astype(np.float64)
    fake = np.concatenate([real[:6], rng.integers(0, 5, size=(14, 2)).astype(np.float64)])
    across = np.sqrt(((real[:, None] - fake[None]) ** 2).sum(-1))
    expected = {}
    for k in (1, 2, 5):
        real_radius, fake_radius = kth(real, k), kth(fake, k)
        expected |= {
            f"k{k}.precision": scalar((across < real_radius[:, None]).any(0).mean()),
            f"k{k}.recall": scalar((across < fake_radius[None]).any(1).mean()),
            f"k{k}.density": scalar((across < real_radius[:, None]).sum(0).mean() / k),
            f"k{k}.coverage": scalar((across.min(1) < real_radius).mean()),
        }
    return {"params": {"op": "prdc", "k": [1, 2, 5]}, "inputs": {"real": real, "fake": fake}, "expected": expected}


@case("metrics", "ours_labels_sparse", "MCC and NMI of label sets with gaps, one cluster for two classes.", "scikit-learn")
def labels_sparse():
    rng = np.random.default_rng(4)
    label = rng.choice([0, 3, 4, 90], size=200, p=[0.7, 0.2, 0.05, 0.05]).astype(np.int64)
    pred = np.where(rng.random(200) < 0.6, np.where(label == 90, 4, label), rng.choice([1, 3, 7], size=200))
    pred = pred.astype(np.int64)
    return {
        "params": {"op": "labels"},
        "inputs": {"pred": pred, "label": label},
        "expected": {"mcc": scalar(matthews_corrcoef(label, pred)),
                     "nmi": scalar(normalized_mutual_info_score(label, pred))},
    }


@case("metrics", "ours_splits_borders", "Accuracy by split: counts at the borders, equal logits, classes without samples.",
      "numpy")
def splits_borders():
    rng = np.random.default_rng(5)
    counts = np.array([101, 100, 20, 19, 500, 0, 60, 3], dtype=np.int64)
    label = rng.choice([0, 1, 2, 3, 4, 7], size=120).astype(np.int64)
    logits = rng.integers(0, 3, size=(120, 8)).astype(np.float64)
    right = logits.argmax(1) == label
    per_class = np.array([right[label == c].mean() if (label == c).any() else -1.0 for c in range(8)])
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    expected, macros = {"acc": scalar(right.mean()), "per_class": per_class}, []
    for name, group in groups.items():
        present = per_class[group & (per_class >= 0)]
        own = right[group[label]]
        macros.append(present.mean() if len(present) else 0.0)
        expected |= {f"{name}_macro": scalar(macros[-1]), f"{name}_micro": scalar(own.mean() if len(own) else 0.0)}
    expected["imbalance_std"] = scalar(np.std(macros))
    return {"params": {"op": "splits"}, "inputs": {"logits": logits, "label": label, "train_counts": counts},
            "expected": expected}


# --- lt_profile --------------------------------------------------------------------------------------------------------


@case("lt_profile", "ours_exponential_1000", "Exponential profiles over 1000 classes, as long as ImageNet-LT's.",
      "LDAM-DRW imbalance_cifar.py", (0, 0))
def exponential_1000():
    expected = {}
    for factor in (10, 256):
        counts = [int(1280 * (1 / factor) ** (c / 999)) for c in range(1000)]
        expected |= {f"counts_{factor}": np.array(counts, dtype=np.int64),
                     f"total_{factor}": np.array([sum(counts)], dtype=np.int64)}
    params = {"op": "exponential", "num_classes": 1000, "n_max": 1280, "imbalance_factors": [10, 256]}
    return {"params": params, "inputs": {"unused": np.zeros(1)}, "expected": expected}


# --- losses ------------------------------------------------------------------------------------------------------------


@case("losses", "ours_cls_certain", "Classification losses where the network is certain: logits of 40, right and wrong.",
      "numpy, closed forms; gradients against central differences")
def cls_certain():
    rng = np.random.default_rng(6)
    counts = np.array([5000, 300, 20, 5, 1], dtype=np.int64)
    target = np.array([0, 1, 2, 3, 4, 0, 4, 2], dtype=np.int64)
    logits = rng.normal(size=(8, 5))
    logits[np.arange(6), target[:6]] += 40.0
    logits[6, 0] += 40.0
    onehot = np.eye(5)[target]

    def log_softmax(z):
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def cross_entropy(z, q):
        return -(q * log_softmax(z)).sum(1).mean()

    smooth = 0.9 * onehot + 0.1 / 5
    shift = np.log(counts)
    prior = np.log(counts / counts.sum())
    losses = {
        "ce": ({"type": "ce"}, 0.0, onehot),
        "smooth": ({"type": "label_smoothing", "eps": 0.1}, 0.0, smooth),
        "bs": ({"type": "balanced_softmax"}, shift, onehot),
        "la": ({"type": "logit_adjust", "tau": 1.5}, 1.5 * prior, onehot),
    }
    expected, specs, worst = {}, [], 0.0
    for name, (spec, added, q) in losses.items():
        specs.append({"id": name, **spec})
        grad = (np.exp(log_softmax(logits + added)) - q) / len(logits)
        expected |= {f"{name}.value": scalar(cross_entropy(logits + added, q)), f"{name}.grad": grad}
        for row, column in ((0, 0), (6, 0), (6, 4), (7, 2)):
            step = np.zeros_like(logits)
            step[row, column] = 1e-6
            numeric = (cross_entropy(logits + added + step, q) - cross_entropy(logits + added - step, q)) / 2e-6
            worst = max(worst, abs(numeric - grad[row, column]))
    return {
        "params": {"family": "classification", "losses": specs},
        "inputs": {"logits": logits, "target": target, "counts": counts},
        "expected": expected,
        "verified": {"central differences": float(worst)},
    }


def describe(tensors):
    return {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}


def main(out):
    for kind, name, about, reference, (rtol, atol), make in CASES:
        made = make()
        folder = out / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        contiguous = lambda tensors: {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        save_file(contiguous(made["inputs"]), folder / "inputs.safetensors")
        save_file(contiguous(made["expected"]), folder / "expected.safetensors")
        text = {
            "kind": kind, "name": name, "reference": reference, "about": about, "params": made["params"],
            "tolerance": {"rtol": rtol, "atol": atol}, "tolerances": made.get("tolerances", {}),
            "inputs": describe(made["inputs"]), "expected": describe(made["expected"]),
            "verified": made.get("verified", {}),
        }
        (folder / "case.json").write_text(json.dumps(text, indent=1) + "\n")
        print(f"{kind}/{name}: verified {text['verified']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
