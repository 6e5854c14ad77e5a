"""How images become network input: our own transform on whole batches, or a library's own, image by image."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nml_kit.errors import InvalidInputError

Images = NDArray[Any] | Iterator[NDArray[np.uint8]]


@dataclass(frozen=True)
class ImageTransform:
    """How uint8 images become network input: resize the short side, crop the centre, scale to 0–1, normalise.

    A side shorter than the crop is padded with black, as torchvision does.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, H, W, 3) uint8 to (B, 3, h, w) float32, channels last in memory (faster on a CPU)."""
        batch = images.permute(0, 3, 1, 2).float().div_(255)
        if self.resize is not None:
            height, width = batch.shape[-2:]
            scale = self.resize / min(height, width)
            size = [round(height * scale), round(width * scale)]
            batch = F.interpolate(batch, size=size, mode=self.interpolation, antialias=True)
            if self.interpolation == "bicubic":
                batch = batch.clamp_(0, 1)  # it overshoots at edges; images of a library, in 8 bits, cannot
        if self.crop is not None:
            missing = [self.crop - side for side in batch.shape[:-3:-1]]  # less than 0: to be cut
            batch = F.pad(batch, [pixels for total in missing for pixels in (int(total / 2), total - int(total / 2))])
        mean, std = (batch.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return batch.sub(mean).div_(std).contiguous(memory_format=torch.channels_last)

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the result, as plain data."""
        clamped = {"clamped": True} if self.interpolation == "bicubic" else {}  # features of before were not
        return asdict(self) | clamped

    def prepare(self, images: Images, device: torch.device) -> Tensor:
        """Network input of uint8 images (B, H, W, 3), or of several sizes, one after the other, each (h, w, 3).

        An object array (B,) may hold these, or an iterator make each when its turn comes: it is let go of then.
        Raises InvalidInputError for anything else, and if what comes out has several sizes.
        """
        if isinstance(images, np.ndarray) and images.dtype != object:
            return self(torch.from_numpy(_required(images, ndim=4)).to(device))
        sizes, prepared = set(), []
        for image in images:
            prepared.append(self(torch.tensor(_required(image)[None]).to(device))[0])
            sizes.add(image.shape)
        batch = _stacked(prepared)  # of one size it is as from an array, and so are the bytes of features
        return batch.contiguous(memory_format=torch.channels_last) if len(sizes) == 1 else batch


@dataclass(frozen=True, eq=False)
class LibraryTransform:
    """The transform of a model's own library: `function` maps a PIL image to a tensor (3, h, w).

    `settings` is the plain configuration that it was made from.
    """

    function: Callable[[Any], Any]
    settings: dict[str, Any]

    def prepare(self, images: Images, device: torch.device) -> Tensor:
        """As `ImageTransform.prepare`."""
        return _stacked([self.function(Image.fromarray(_required(image))) for image in images]).to(device)


Transform = ImageTransform | LibraryTransform


def _required(images: Any, *, ndim: int = 3) -> NDArray[np.uint8]:
    """The images or the one image, after a check."""
    kind, shape = getattr(images, "dtype", type(images).__name__), np.shape(images)
    if kind != np.uint8 or len(shape) != ndim or shape[-1] != 3:
        raise InvalidInputError(
            "Expected uint8 images (N, H, W, 3), or an object array (N,) of uint8 images (h, w, 3), got "
            f"{kind} of shape {shape}; a text encoder is for texts, an image encoder for images."
        )
    return images


def _stacked(images: list[Tensor]) -> Tensor:
    if len(sizes := {tuple(image.shape) for image in images}) > 1:
        raise InvalidInputError(
            f"Expected a transform that gives all images one size, got {sorted(sizes)}; let it resize and crop."
        )
    return torch.stack(images)
