"""Reading a feature matrix: its shape, its rows in slices, as real finite numbers. N samples, D features."""

import mmap
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nml_kit.errors import InvalidInputError, unknown_name

Center = Literal["none", "feature", "sample"]
FloatArray = NDArray[np.float64]

CENTERS = ("none", "feature", "sample")
# More rows at once make the rank-k update no faster (8 MiB of float64 at D = 2,048), and lose digits: one product sums
# them one after the other, and equal terms, such as the zeros after a ReLU, then round the same way each time.
BLOCK_ROWS = 512
_LARGEST_MAGNITUDE = 1e300  # differences of two such entries are still finite


def check_center(center: str) -> None:
    if center not in CENTERS:
        raise unknown_name("centring", center, CENTERS)


def matrix_shape(X: Any) -> tuple[int, int]:
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) != 2 or 0 in shape:
        raise InvalidInputError(
            f"Expected a feature matrix of shape (samples, features), at least 1 × 1; "
            f"got {type(X).__name__} of shape {shape}. Flatten each sample to one row."
        )
    return int(shape[0]), int(shape[1])


def row_slices(X: Any, size: int, chosen: NDArray[np.intp] | None = None) -> Iterator[Any]:
    """The rows of X, or those with the ascending numbers `chosen` (n,), in slices of `size`, each of them read once."""
    for start in range(0, X.shape[0] if chosen is None else len(chosen), size):
        if chosen is None:
            block = X[start : start + size]
        else:
            numbers = chosen[start : start + size]
            block = real_rows(X[numbers])
            check_finite(block, numbers)  # here their numbers are known
        yield block
        release_mapped_pages(X)


def real_rows(block: Any) -> NDArray[Any]:
    """A slice as a numpy array of real numbers, not copied where numpy can read it as it is."""
    if isinstance(block, torch.Tensor):
        block = block.detach().cpu()
        block = (block.float() if block.dtype is torch.bfloat16 else block).numpy()
    values = np.asarray(block)
    if values.dtype.kind not in "fiub":
        raise InvalidInputError(f"Expected real numbers as features, got dtype {values.dtype}. Convert them first.")
    return values


def largest_magnitude(rows: NDArray[Any]) -> float:
    """In one pass each and no temporary; NaN and infinity come through, since they reach the minimum or the maximum."""
    return max(float(rows.max()), -float(rows.min()))


def check_finite(block: NDArray[Any], row_numbers: NDArray[np.intp]) -> None:
    """Raise InvalidInputError that names the first row with an entry that is not finite, or too large to subtract."""
    if largest_magnitude(block) <= _LARGEST_MAGNITUDE:
        return
    magnitudes = np.abs(block.astype(np.float64)).max(axis=1)
    bad = int(np.flatnonzero(~(magnitudes <= _LARGEST_MAGNITUDE))[0])
    row = int(row_numbers[bad])
    if np.isfinite(magnitudes[bad]):
        raise InvalidInputError(
            f"Expected features of magnitude up to {_LARGEST_MAGNITUDE:g}, got {magnitudes[bad]:g} in row {row}. "
            "Scale the features."
        )
    raise InvalidInputError(
        f"Expected finite features, got NaN or inf in row {row}. Drop that row or extract it again."
    )


def centred_entries(values: FloatArray) -> FloatArray:
    """`values` (…, D) minus the mean over the last axis, exactly 0 where they are equal."""
    differences = values - values[..., :1]  # the mean of equal numbers may round, that of zeros does not
    centred: FloatArray = differences - differences.mean(axis=-1, keepdims=True)
    return centred


def release_mapped_pages(X: Any) -> None:
    """Let go of the pages that reading a memory-map has made resident, or a pass would hold the whole file."""
    # A copy-on-write map keeps its changes in those pages only.
    if not isinstance(X, np.memmap) or X.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    owner: Any = X
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    if owner is not None:
        owner.madvise(mmap.MADV_DONTNEED)
