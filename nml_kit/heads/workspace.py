"""Memory that is used again: fresh pages cost as much as the arithmetic of a training step."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Workspace:
    """Named tensors that are made once for each shape; what one holds lasts until its name is taken again."""

    def __init__(self) -> None:
        self._tensors: dict[Hashable, Tensor] = {}

    def tensor(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor of the shape, on the device of `like` and, unless given, of its dtype."""
        key = name, *shape
        if key not in self._tensors:
            self._tensors[key] = torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device)
        return self._tensors[key]
