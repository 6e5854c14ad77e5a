"""Singular values of several subsets of the rows of one matrix, each centred in several ways, from one pass."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nml_kit.errors import InvalidInputError, PrecisionLossError
from nml_kit.spectrum.accumulator import SpectrumAccumulator
from nml_kit.spectrum.qr import qr_singular_values
from nml_kit.spectrum.rows import (
    BLOCK_ROWS,
    Center,
    FloatArray,
    PickedRows,
    check_center,
    check_finite,
    matrix_shape,
    real_rows,
    release_mapped_pages,
)


def spectra_of_subsets(
    X: Any, subsets: Mapping[str, Any], *, centers: Iterable[Center] = ("none",)
) -> dict[tuple[str, Center], FloatArray]:
    """Return the singular values of subsets of the rows of X in every centring, reading X once, by (subset, centring).

    X is (N, D) as for `singular_values` and also takes an array of row numbers, as arrays, tensors and memory-maps do.
    `subsets` has for each name the rows that belong to it, bool (N,); they may overlap ("all", "train", a domain). The
    values of n rows are float64 (min(n, D),), those that `singular_values` of these rows gives.

    Memory is O(D²) for each subset, whatever N: for many groups without overlap, such as classes, take
    `grouped_singular_values`. Only where a Gram matrix would lose precision are the rows of that subset read again,
    once for each such centring. Raises `InvalidInputError` as `singular_values` does (for rows that are in some
    subset), and for a mask that is not bool (N,) or has no row, naming the subset.

    >>> import numpy as np
    >>> X = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    >>> spectra_of_subsets(X, {"first": [True, False, False], "others": [False, True, True]})
    {('first', 'none'): array([5.]), ('others', 'none'): array([2., 1.])}
    """
    num_samples, num_features = matrix_shape(X)
    centers = tuple(centers)
    for center in centers:
        check_center(center)
    masks = {name: _checked_mask(name, mask, num_samples) for name, mask in subsets.items()}
    parts = {name: _Subset(mask, num_features) for name, mask in masks.items()}
    _read_once(X, list(parts.values()))
    return {(name, center): part.singular_values(X, center) for name, part in parts.items() for center in centers}


class _Subset:
    """An accumulator of some rows that takes them in blocks as large as if there were no others between them."""

    def __init__(self, mask: NDArray[np.bool_], num_features: int) -> None:
        self.mask = mask
        self._accumulator = SpectrumAccumulator(num_features)
        self._waiting = np.empty((0, num_features))

    def add(self, rows: FloatArray, mask: NDArray[np.bool_]) -> None:
        """Take the rows (at most BLOCK_ROWS) that `mask` chooses."""
        picked = rows if mask.all() else rows[mask]
        waiting = np.concatenate([self._waiting, picked]) if len(self._waiting) else picked
        if len(waiting) >= BLOCK_ROWS:
            self._accumulator.update(waiting[:BLOCK_ROWS])
            waiting = waiting[BLOCK_ROWS:]
        self._waiting = waiting

    def singular_values(self, X: Any, center: Center) -> FloatArray:
        if len(self._waiting):
            self._accumulator.update(self._waiting)
            self._waiting = self._waiting[:0]
        with suppress(PrecisionLossError):
            return self._accumulator.singular_values(center=center)
        return qr_singular_values(PickedRows(X, np.flatnonzero(self.mask)), center)


def _read_once(X: Any, parts: list[_Subset]) -> None:
    """Read the blocks of X in which some part has rows, once and in order, converted for all parts together."""
    used = np.any([part.mask for part in parts], axis=0)
    for start in BLOCK_ROWS * np.unique(np.flatnonzero(used) // BLOCK_ROWS):
        wanted = start + np.flatnonzero(used[start : start + BLOCK_ROWS])
        block = real_rows(X[start : start + BLOCK_ROWS])
        block = block if len(wanted) == len(block) else block[wanted - start]
        check_finite(block, wanted)
        rows = block.astype(np.float64, order="C")
        release_mapped_pages(X)
        for part in parts:
            part.add(rows, part.mask[wanted])


def _checked_mask(name: str, mask: Any, num_samples: int) -> NDArray[np.bool_]:
    values = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask)
    if values.shape != (num_samples,) or values.dtype != bool:
        raise InvalidInputError(
            f"Expected a mask of bool ({num_samples},) for subset {name!r}, one value per row of X; "
            f"got {values.dtype} of shape {values.shape}."
        )
    if not values.any():
        raise InvalidInputError(f"Expected at least one row in subset {name!r}, got none. Leave it out.")
    return values
