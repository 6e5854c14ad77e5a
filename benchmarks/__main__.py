"""`make bench`: each row compares two medians measured in turn in one run; quote the ratios, not the times."""

import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nml_kit._sgd import shift_images
from nml_kit.backbones import load_backbone
from nml_kit.datasets import load_task
from nml_kit.features import BATCH_ROWS, extract_features
from nml_kit.regularizers import nmtune_terms
from nml_kit.spectrum import singular_values
from nml_kit.store import Store

REPEATS = 7


def medians(ours: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, run in turn after one warm-up each, so that a drifting machine slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS + 1):
        for store, run in zip(times, (ours, other), strict=True):
            started = time.perf_counter()
            run()
            if repeat:
                store.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def textbook_terms(Z: Tensor, F: Tensor) -> Tensor:
    """NMTune's terms as the formulas read: a D×D covariance and a full SVD, differentiated by autograd."""
    unit = nn.functional.normalize
    mse = (unit(F) - unit(Z)).square().sum(1).mean()
    covariance = torch.cov(Z.T)
    cov = (covariance - torch.diag(covariance.diagonal())).square().sum() / Z.shape[1]
    sigma = torch.linalg.svdvals(Z)
    return mse + cov - sigma[0] / sigma.sum()


def step(terms: Callable[[Tensor, Tensor], Tensor] | None, samples: int, features: int) -> Callable[[], None]:
    """One optimiser step of a two-layer head with 4 D hidden units."""
    torch.manual_seed(0)
    tuner = nn.Sequential(nn.Linear(features, 4 * features), nn.ReLU(), nn.Linear(4 * features, features))
    classifier = nn.Linear(features, 10)
    optimizer = torch.optim.AdamW([*tuner.parameters(), *classifier.parameters()], lr=1e-3, fused=True)
    F, y = torch.randn(samples, features), torch.randint(0, 10, (samples,))

    def run() -> None:
        Z = tuner(F)
        loss = nn.functional.cross_entropy(classifier(Z), y)
        if terms is not None:
            loss = loss + 0.01 * terms(Z, F)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()

    return run


def step_rows() -> list[tuple[str, tuple[float, float]]]:
    rows = []
    for samples, features in ((64, 512), (64, 2048)):
        ours = step(lambda Z, F: sum(nmtune_terms(Z, F)), samples, features)
        size = f"M={samples}, D={features}"
        rows.append(
            (f"NMTune step against its textbook form ({size})", medians(ours, step(textbook_terms, samples, features)))
        )
        rows.append((f"NMTune step against a plain MLP step ({size})", medians(ours, step(None, samples, features))))
    return rows


def extraction_row() -> tuple[str, tuple[float, float]]:
    task, backbone = load_task("fashion"), load_backbone("compact-resnet")

    def ours() -> None:
        with tempfile.TemporaryDirectory() as root:
            extract_features(task, backbone, store=Store(root), progress=False)

    def bare() -> None:
        for start in range(0, len(task), BATCH_ROWS):
            backbone(task.images[start : start + BATCH_ROWS])

    return "feature extraction, stored, against the bare forward loop", medians(ours, bare)


def spectrum_row() -> tuple[str, tuple[float, float]]:
    X = np.random.default_rng(0).standard_normal((10_000, 512)).astype(np.float32)
    numpy_svd = lambda: np.linalg.svd(X.astype(np.float64), compute_uv=False)  # noqa: E731
    return "singular values 10,000 × 512 against numpy's SVD (float64)", medians(lambda: singular_values(X), numpy_svd)


def shift_row() -> tuple[str, tuple[float, float]]:
    images = torch.randint(0, 256, (128, 32, 32, 3), dtype=torch.uint8)
    generator = np.random.default_rng(0)

    def one_by_one() -> None:
        torch.cat([shift_images(image[None], 2, generator) for image in images])

    return "shifting a batch of 128 images against one by one", medians(
        lambda: shift_images(images, 2, generator), one_by_one
    )


def main() -> None:
    table = Table(title=f"{torch.get_num_threads()} threads, medians of {REPEATS}")
    for heading in ("what", "ours (ms)", "other (ms)", "times faster"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for what, (ours, other) in (*step_rows(), extraction_row(), spectrum_row(), shift_row()):
        table.add_row(what, f"{1e3 * ours:.1f}", f"{1e3 * other:.1f}", f"{other / ours:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
