"""Whole fits: sweeps in one pass, a fit on cached features, the exact probe, and the head grid of the study."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import Row, compare, where_time_goes
from benchmarks.steps import textbook_step_on, textbook_terms
from nml_kit import (
    LinearProbe,
    MLPTune,
    NMTune,
    fit_heads,
    load_backbone,
    load_profile,
    load_task,
    regularisation_path,
)
from nml_kit.study import downstream_tasks, make_head, study_folds

BATCH = 64


def separable(samples: int, features: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes that overlap, float32."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, classes, samples)
    centres = generator.standard_normal((classes, features)) * 3 / np.sqrt(features)
    return (centres[codes] + generator.standard_normal((samples, features))).astype(np.float32), codes


def plain_probe(X: np.ndarray, y: np.ndarray, classes: int, epochs: int) -> Callable[[], None]:
    """A linear probe as one writes it: nn.Linear, autograd, AdamW with its defaults, batches by index."""
    features, labels = torch.from_numpy(X), torch.from_numpy(y)

    def run() -> None:
        probe = nn.Linear(X.shape[1], classes)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(X) // BATCH))
        for _ in range(epochs):
            for index in torch.randperm(len(X)).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(probe(features[index]), labels[index]).backward()
                optimizer.step()
                schedule.step()

    return run


def sweep_rows() -> Iterator[Row]:
    X, y = separable(6400, 512, 10)
    plain, epochs = plain_probe(X, y, 10, 2), 2
    sweeps = {
        "weight decays": [{"weight_decay": 10.0**-power} for power in range(1, 17)],
        "seeds": [{"random_state": seed} for seed in range(16)],
        "learning rates": [{"learning_rate": 10.0 ** -(1 + power / 4)} for power in range(16)],
    }
    for name, sweep in sweeps.items():
        heads = [LinearProbe(epochs=epochs, **settings) for settings in sweep]
        yield compare(
            f"linear probe, 16 {name} in one pass, per head (K = 10, D = 512)",
            "one at a time: nn.Linear, default AdamW",
            lambda heads=heads: fit_heads(X, y, heads),
            plain,
            scale=1 / 16,
            target=8.0,
        )
    heads = [LinearProbe(epochs=epochs, **settings) for settings in sweeps["weight decays"]]
    alone = LinearProbe(epochs=epochs)
    yield compare(
        "linear probe, 16 weight decays in one pass, per head (K = 10, D = 512)",
        "our own fit, one at a time",
        lambda: fit_heads(X, y, heads),
        lambda: alone.fit(X, y),
        scale=1 / 16,
    )


def reencoding_row() -> Row:
    from torchvision.models import resnet18

    X, y = separable(10_000, 512, 10)
    head = NMTune(epochs=30, random_state=0)
    encoder = nn.Sequential(*list(resnet18(weights=None).children())[:-1], nn.Flatten()).eval()
    images = torch.randn(BATCH, 3, 224, 224)
    step = textbook_step_on(1, BATCH, 512)
    batches = 30 * -(-10_000 // BATCH)

    def reencode() -> None:
        with torch.inference_mode():
            features = encoder(images)
        step(features.clone())

    return compare(
        "a whole NMTune fit: 30 epochs of 10,000 × 512 cached features",
        "the same, encoding 224-pixel images at every step (ResNet-18)",
        lambda: head.fit(X, y),
        reencode,
        other_scale=batches,
        target=100.0,
        note=f"the other: one of its {batches:,} steps, measured seven times and extrapolated",
    )


def loader_row() -> Row:
    X, y = separable(6400, 512, 10)
    head = LinearProbe(epochs=2)
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), batch_size=BATCH, shuffle=True)

    def with_loader() -> None:
        probe = nn.Linear(512, 10)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, fused=True)
        for _ in range(2):
            for features, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(probe(features), labels).backward()
                optimizer.step()

    return compare(
        "one linear probe, batches by index", "torch DataLoader, fused AdamW", lambda: head.fit(X, y), with_loader
    )


def shipped_features() -> tuple[np.ndarray, np.ndarray]:
    """Standardised features of the shipped Fashion images by a network with random weights."""
    backbone, task = load_backbone("compact-resnet"), load_task("fashion")
    X = backbone(task.images).numpy()
    return ((X - X.mean(axis=0)) / (X.std(axis=0) + 1e-6)).astype(np.float32), task.labels


def accuracies(X: np.ndarray, y: np.ndarray, train: np.ndarray, penalties: np.ndarray) -> str:
    """The best held-out accuracy of both paths, and how far above our objective scikit-learn's default stops."""
    path = regularisation_path(X[train], y[train], penalties)
    logits = np.einsum("nd,pkd->pnk", X[~train], path.coefficients, optimize=True) + path.intercepts[:, None]
    ours = (logits.argmax(axis=2) == y[~train]).mean(axis=1)
    probes = [LogisticRegression(C=C, max_iter=2000).fit(X[train], y[train]) for C in penalties]
    theirs = np.array([probe.score(X[~train], y[~train]) for probe in probes])
    rounds = [int(probe.n_iter_[0]) for probe in probes]
    excess = []
    for probe, W, b, C in zip(probes, path.coefficients, path.intercepts, penalties, strict=True):
        theirs_at_C = objective(probe.coef_, probe.intercept_, X[train], y[train], C)
        excess.append(theirs_at_C / objective(W, b, X[train], y[train], C) - 1)
    return (
        f"best held-out accuracy {ours.max():.4f}, scikit-learn {theirs.max():.4f} (within 0.001 aimed at); its "
        f"objective exceeds ours by {min(excess):.0e} to {max(excess):.0e} of it, after {min(rounds)} to {max(rounds)} "
        "iterations"
    )


def objective(W: np.ndarray, b: np.ndarray, X: np.ndarray, y: np.ndarray, C: float) -> float:
    logits = X.astype(np.float64) @ W.T.astype(np.float64) + b
    return float(C * -log_softmax(logits, axis=1)[np.arange(len(y)), y].sum() + np.square(W).sum() / 2)


def path_rows() -> Iterator[Row]:
    data = {
        "shipped Fashion images, random network": (*shipped_features(), 3_000),
        "easy Gaussian classes": (*separable(4_000, 256, 30), 2_000),
        "Gaussian classes": (*separable(30_000, 512, 10), 20_000),
    }
    penalties = np.logspace(-4, 2, 20)
    for name, (X, y, samples) in data.items():
        train = np.random.default_rng(0).permutation(len(X)) < samples
        sample = penalties if samples < 20_000 else penalties[[4, 9, 14]]

        def scikit_learn(X=X[train], y=y[train], sample=sample) -> None:
            for C in sample:
                LogisticRegression(C=C, max_iter=2000).fit(X, y)

        extrapolated = "" if len(sample) == 20 else "; the other: 3 of its 20 fits, extrapolated"
        ours = partial(regularisation_path, X[train], y[train], penalties)
        size = f"{samples:,} × {X.shape[1]}, K = {y.max() + 1}"
        yield compare(
            f"exact linear probe, path of 20 penalties ({name}, {size})",
            "20 fits of scikit-learn's LogisticRegression (lbfgs)",
            ours,
            scikit_learn,
            other_scale=20 / len(sample),
            target=5.0,
            note=f"{accuracies(X, y, train, penalties)}; {where_time_goes(ours, 1)}{extrapolated}",
        )


def study_grid_row() -> Row:
    """The heads of the profile `small` on one network, and how many networks it has."""
    profile = load_profile("small")
    tasks = downstream_tasks(profile)
    folds = list(study_folds(profile, tasks))
    networks = len(profile.ratios) * len(profile.seeds) + 1
    task = tasks["icons"]
    train = int((task.splits == "train").sum())
    X, y = separable(train, 256, task.num_classes)
    heads = [make_head(method, profile, 0) for method in ("LP", "MLP", "NMTune")]
    sizes = [int(((tasks[f.task].splits == "train") & in_domains(tasks[f.task].domains, f.train_domains)).sum())
             for f in folds]  # fmt: skip
    scale = networks * sum(sizes) / train
    steps = [plain_steps(X, y, task.num_classes, kind) for kind in ("LP", "MLP", "NMTune")]

    def one_by_one() -> None:
        for run in steps:
            run()

    return compare(
        f"all heads of profile small: {networks} networks × {len(folds)} folds × 3 methods, in all",
        "one by one: modules, autograd, default AdamW, textbook terms",
        lambda: fit_heads(X, y, heads),
        one_by_one,
        scale=scale,
        other_scale=scale * profile.head_epochs,
        note="measured on one fold (icons, three heads; the other: one of 30 epochs) and extrapolated by samples, "
        "as one process",
    )


def in_domains(domains: np.ndarray, chosen: tuple[str, ...] | None) -> np.ndarray:
    return np.ones(len(domains), bool) if chosen is None else np.isin(domains, chosen)


def plain_steps(X: np.ndarray, y: np.ndarray, classes: int, method: str) -> Callable[[], None]:
    """One epoch of a head written with modules, autograd and default AdamW."""
    features, labels, width = torch.from_numpy(X), torch.from_numpy(y), X.shape[1]
    tuner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    classifier = nn.Linear(width, classes)
    used = [*classifier.parameters(), *(tuner.parameters() if method != "LP" else [])]
    optimizer = torch.optim.AdamW(used, lr=1e-3)

    def run() -> None:
        for index in torch.randperm(len(X)).split(BATCH):
            F = features[index]
            Z = F if method == "LP" else tuner(F)
            loss = nn.functional.cross_entropy(classifier(Z), labels[index])
            if method == "NMTune":
                loss = loss + 0.01 * textbook_terms(Z, F)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def rows() -> Iterator[Row]:
    yield from sweep_rows()
    X, y = separable(6400, 256, 10)
    tuned = [MLPTune(epochs=2, random_state=seed) for seed in range(8)]
    yield compare(
        "MLP heads (D = 256), 8 seeds in one pass, per head",
        "our own fit, one at a time",
        lambda: fit_heads(X, y, tuned),
        lambda: tuned[0].fit(X, y),
        scale=1 / 8,
    )
    yield loader_row()
    yield reencoding_row()
    yield from path_rows()
    yield study_grid_row()
