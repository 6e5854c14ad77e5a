"""How features and settings reach the heads: arrays, tensors and memory-maps stay as they lie, blocks come out."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data
from torch import Tensor

from nml_kit.errors import InvalidInputError
from nml_kit.spectrum import release_mapped_pages

Mask = Bool[np.ndarray, " n"] | None

_KEPT = ("float16", "float32", "float64")
_KEPT_IN_TENSORS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BLOCK_ROWS = 1024


def on_host(values: Any) -> Any:
    """Return a tensor as an array (half precisions widened to float32: NumPy has no bfloat16); others unchanged."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()


def validated_features(head: Any, X: Any, *labels: Any, reset: bool = True) -> tuple[Any, ...]:
    """Check X (N, D) and labels (N,), if there are any, as scikit-learn does; return X as a tensor, and the labels.

    Floats of 16, 32 and 64 bits keep their dtype, memory and device; anything else is converted to `head.dtype`.
    """
    stays = isinstance(X, Tensor) and X.ndim == 2 and X.dtype in _KEPT_IN_TENSORS
    # scikit-learn knows arrays only: zeros that take no memory stand in for a tensor, their shape is all it checks.
    stand_in = np.broadcast_to(np.float32(0), X.shape) if stays else on_host(X)
    arguments = {"X": stand_in, **({"y": labels[0]} if labels else {})}
    checked = validate_data(head, **arguments, dtype=(head.dtype, *_KEPT), reset=reset, ensure_all_finite=False)
    features, *checked_labels = checked if labels else (checked,)
    features = X.detach() if stays else _shared_tensor(features)
    # To gather a row of a matrix in column order costs a cache miss per entry.
    return features if features.stride(1) == 1 else features.contiguous(), *checked_labels


def finite_blocks(X: Float[Tensor, "n d"], dtype: torch.dtype, source: Any = None) -> Iterator[Float[Tensor, "m d"]]:
    """Yield the rows of X (N, D) as `dtype`, block by block; raise InvalidInputError at the first with NaN or inf.

    Reading does not hold the pages of `source`, if that is the memory-map which X shows.
    """
    for start in range(0, len(X), BLOCK_ROWS):
        block = X[start : start + BLOCK_ROWS].to(dtype)
        if not torch.stack(torch.aminmax(block)).isfinite().all():  # NaN and inf reach the minimum or the maximum
            row = start + int(block.isfinite().all(dim=1).logical_not().nonzero()[0])
            raise InvalidInputError(
                f"Expected finite features, got NaN or inf in row {row}. Drop that row or extract it again."
            )
        yield block
        release_mapped_pages(source)


def training_rows(y: NDArray[Any], mask: Mask, device: torch.device) -> tuple[NDArray[Any], Tensor, Tensor]:
    """Return the classes (K,) among the chosen rows, the rows (n,), and their labels as codes of those classes (n,)."""
    if mask is not None and (np.shape(mask) != (len(y),) or np.asarray(mask).dtype != bool):
        came = f"{np.asarray(mask).dtype} of shape {np.shape(mask)}"
        raise InvalidInputError(f"Expected sample masks of bool ({len(y)},), one value per row of X, got {came}.")
    rows = np.arange(len(y)) if mask is None else np.flatnonzero(mask)
    classes, codes = encoded(y[rows])
    return classes, torch.from_numpy(rows).to(device), torch.from_numpy(codes).to(device)


def encoded(y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes (K,) and the labels as codes 0 … K−1 (n,); raise InvalidInputError for fewer than two."""
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        came = f"one class: {classes[0]!r}" if len(classes) else "no class"
        raise InvalidInputError(f"Expected at least two classes in y, got {came} ({len(y)} samples).")
    return classes, codes


def require_finite(X: NDArray[Any] | Tensor, dtype: str | None = None, source: Any = None) -> None:
    """Raise InvalidInputError naming the first row of X (N, D) that holds NaN or inf, once it is of `dtype`."""
    tensor = X if isinstance(X, Tensor) else _shared_tensor(X)
    for _ in finite_blocks(tensor, getattr(torch, dtype) if dtype else tensor.dtype, source):
        pass


def require(condition: bool, expected: str, value: object) -> None:
    """Raise InvalidInputError unless `condition` holds."""
    if not condition:
        raise InvalidInputError(f"Expected {expected}, got {value!r}.")


def _shared_tensor(X: NDArray[Any]) -> Tensor:
    """X (N, D) as a tensor of the same memory, a read-only map's too: nobody writes to features."""
    if any(stride < 0 or stride % X.itemsize for stride in X.strides):
        X = np.ascontiguousarray(X)  # torch cannot express these
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(X)
