"""Singular values of large feature matrices: time against other routes, accuracy, memory and growth."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from scipy.linalg.blas import dsyrk
from sklearn.decomposition import TruncatedSVD

from benchmarks.measure import Row, compare, exponent, in_turn
from nml_kit import largest_singular_value_ratio, singular_value_entropy, singular_values

N, D = 50_000, 2_048
_PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from nml_kit import singular_values

def peak():  # not ru_maxrss, which a process takes over from its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

X = np.load(sys.argv[1], mmap_mode="r")
singular_values(np.ones((64, 32)))  # the libraries are loaded
before = peak()
singular_values(X)
print(peak() - before)
"""


def features(samples: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows like those of a network: a decaying spectrum, a mean, ReLU; float32."""
    generator = np.random.default_rng(seed)
    scales = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    X = generator.standard_normal((samples, width), dtype=np.float32) * scales
    X += 0.3
    return np.maximum(X, 0, out=X)


def errors(X: np.ndarray, reference: np.ndarray) -> str:
    """Relative errors of SVE and LSVR against a float64 SVD."""
    ours = singular_values(X)
    parts = []
    for name, metric in (("SVE", singular_value_entropy), ("LSVR", largest_singular_value_ratio)):
        parts.append(f"{name} {abs(metric(ours) / metric(reference) - 1):.0e}")
    return f"relative error against a float64 SVD: {', '.join(parts)} (≤ 1e-6 aimed at)"


def extra_memory(samples: int, width: int) -> int:
    """Megabytes that the peak of a process grows by the spectrum of mapped rows, all buffers included."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "features.npy"
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(samples, width))
        for start in range(0, samples, 5000):
            mapped[start : start + 5000] = features(min(5000, samples - start), width, seed=start)
        mapped.flush()
        del mapped
        done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout) // 1024


def products_alone(X: np.ndarray) -> None:
    """The symmetric products in float64, whose converted rows are there already."""
    block = np.ones((512, X.shape[1]))
    gram = np.zeros((X.shape[1], X.shape[1]), order="F")
    for _ in range(0, len(X), 512):
        gram = dsyrk(1.0, block.T, beta=1.0, c=gram, lower=1, overwrite_c=1)


def growth_rows() -> Iterator[Row]:
    for name, sizes, shapes in (
        ("N", [1, 2, 4, 8], [(8_000 * factor, 512) for factor in (1, 2, 4, 8)]),
        ("D", [1, 2, 4], [(16_000, 512 * factor) for factor in (1, 2, 4)]),
    ):
        matrices = [features(*shape) for shape in shapes]
        times = in_turn(*(lambda X=X: singular_values(X) for X in matrices))
        medians = [float(np.median(samples)) for samples in times]
        detail = ", ".join(f"{n:,} × {d:,}: {t:.2f} s" for (n, d), t in zip(shapes, medians, strict=True))
        aim = " (≤ 1.05 aimed at)" if name == "N" else " (2 to 3: D² products, D³ eigenvalues)"
        yield Row(
            f"spectrum at {sizes[-1]} × {name}, over {sizes[-1]}",
            f"at 1 × {name}",
            medians[-1] / sizes[-1],
            medians[0],
            note=f"{detail}; exponent {exponent(sizes, medians):.2f}{aim}",
        )


def rows() -> Iterator[Row]:
    X = features(N, D)
    reference = np.linalg.svd(X.astype(np.float64), compute_uv=False)
    size, tensor = f"singular values of {N:,} × {D:,} float32 features", torch.from_numpy(X)
    memory = f"extra memory {extra_memory(N, D)} MB, at twice the rows {extra_memory(2 * N, D)} MB (≤ 200 aimed at)"
    gram = X[: 2 * D].T.astype(np.float64) @ X[: 2 * D]
    eigenvalues = np.median(in_turn(lambda: scipy.linalg.eigvalsh(gram, driver="evd"))[0])
    yield compare(
        size,
        "numpy.linalg.svd, values only",
        lambda: singular_values(X),
        lambda: np.linalg.svd(X, compute_uv=False),
        floor=lambda: products_alone(X),
        target=4.0,
        note=f"{errors(X, reference)}; {memory}; beside the products (floor), eigenvalues take {eigenvalues:.2f} s",
    )
    yield compare(size, "torch.linalg.svdvals", lambda: singular_values(X), lambda: torch.linalg.svdvals(tensor))
    yield compare(
        size,
        f"scikit-learn's TruncatedSVD with D components, {N // 5:,} rows, times five",
        lambda: singular_values(X),
        lambda: TruncatedSVD(D, random_state=0).fit(X[: N // 5]),
        other_scale=5,
        target=20.0,
        note="TruncatedSVD is measured on a fifth of the rows",
    )
    yield from growth_rows()
