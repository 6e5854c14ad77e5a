"""How features and settings reach the heads: arrays, tensors and memory-maps in, one resident tensor out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nml_kit.errors import InvalidInputError


def on_host(values: Any) -> Any:
    """Return a tensor as an array (half precisions widened to float32: NumPy has no bfloat16); others unchanged."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()


def to_tensor(X: NDArray[Any], device: str) -> torch.Tensor:
    """Return X as a tensor on `device`, sharing its memory where it can."""
    # torch does not support read-only memory: a read-only map is copied into memory once.
    return torch.from_numpy(np.require(X, requirements=["C", "W"])).to(device)


def require_finite(X: NDArray[Any]) -> None:
    """Raise `InvalidInputError` naming the first row of X (N, D) that holds NaN or inf."""
    with np.errstate(all="ignore"):
        sums = X.sum(axis=1, dtype=np.float64)  # NaN and inf survive a sum, which needs no (N, D) mask
    bad = np.flatnonzero(~np.isfinite(sums))
    if bad.size:
        raise InvalidInputError(
            f"Expected finite features, got NaN or inf in row {bad[0]}. Drop that row or extract it again."
        )


def require(condition: bool, expected: str, found: object) -> None:
    """Raise `InvalidInputError` unless `condition` holds."""
    if not condition:
        raise InvalidInputError(f"Expected {expected}, got {found!r}.")
