"""What the singular directions of a feature matrix stand for: the samples that load on them, the classes they part."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from nml_kit.errors import InvalidInputError


def singular_directions(X: ArrayLike) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r d"]]:
    """Return the loadings (N, r) of the N samples on the r = min(N, D) singular directions, and the directions (r, D).

    X (N, D), not centred. Loading (n, i) is the coordinate of sample n on direction i, σ_i·u_ni: column i has norm σ_i.
    Each direction points to where the sum of the loadings is positive. Raises InvalidInputError unless X is a finite
    matrix.

    >>> loadings, directions = singular_directions([[3.0, 0.0], [0.0, 4.0]])
    >>> loadings.tolist()
    [[0.0, 3.0], [4.0, 0.0]]
    """
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or not np.isfinite(X).all():
        raise InvalidInputError(f"Expected a finite matrix (N, D), got shape {X.shape}.")
    left, values, directions = np.linalg.svd(X, full_matrices=False)
    signs = np.where(left.sum(axis=0) < 0, -1.0, 1.0)
    return left * values * signs + 0.0, directions * signs[:, None] + 0.0  # + 0.0: no negative zeros


def class_separation(loadings: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Return how well one direction parts the classes: η², the share (fraction) of the variance between classes.

    Where nothing varies it is 0. Source: the correlation ratio (Fisher 1925).

    >>> class_separation(np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1]))
    1.0
    """
    centred = loadings - loadings.mean()
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    between, total = (np.bincount(codes, centred) ** 2 / counts).sum(), (centred**2).sum()
    return float(between / total) if total > 0 else 0.0


def described_direction(
    loadings: Float[np.ndarray, "n r"],
    index: int,
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    count: int,
) -> tuple[NDArray[np.intp], list[str], str]:
    """Return the samples that load most on direction `index` (from 1), a caption for each, and what parts the classes.

    Raises InvalidInputError for an index out of range.

    >>> described_direction(np.array([[1.0], [3.0], [3.0]]), 1, np.array([0, 1, 1]), ["cat", "dog"], 1)[1:]
    (['dog +3.00'], 'classes make 100% of its variance')
    """
    if not 1 <= index <= loadings.shape[1]:
        raise InvalidInputError(f"Expected a direction from 1 to {loadings.shape[1]}, got {index}.")
    direction = loadings[:, index - 1]
    strongest = np.argsort(-np.abs(direction), kind="stable")[:count]
    captions = [f"{class_names[labels[row]]} {direction[row]:+.2f}" for row in strongest]
    return strongest, captions, f"classes make {class_separation(direction, labels):.0%} of its variance"
