"""The value that every loader of backbones returns, how a network becomes one, and errors that loaders share."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from nml_kit.backbones.transforms import Images, Transform
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError, NMLError
from nml_kit.store import fingerprint

# What reading a file raises that does not hold the weights it should: of its bytes, and of what they should be.
_BAD_BYTES = (OSError, EOFError, SafetensorError, UnpicklingError, struct.error)
UNREADABLE = (*_BAD_BYTES, RuntimeError, ValueError, LookupError, AttributeError, TypeError)
# Activations of more no longer stay in a CPU's caches: EfficientNet-Lite0 takes three times as long a picture.
_CPU_PIXELS = 8 * 224 * 224


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen feature extractor: `encode` maps a batch of inputs to features (B, D).

    `fingerprint` identifies the weights; with transform, layer and `settings` (what else was resolved, such as the
    architecture, the tokenizer or the pooling) it decides which cached features fit. `shard_rows` is how many rows are
    kept at once while features are extracted, where each costs money. `print` shows what was resolved.
    """

    name: str
    encode: Callable[[Any], Any]
    fingerprint: str
    transform: Transform | None
    layer: str = "penultimate"
    card: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    shard_rows: int | None = None

    def __str__(self) -> str:
        return "\n".join([self.name, *_lines(self.key | {"weights": self.fingerprint[:12]})])

    @property
    def key(self) -> dict[str, Any]:
        """Everything about the backbone that determines its features."""
        transform = self.transform.settings if self.transform else None
        key = {"weights": self.fingerprint, "transform": transform, "layer": self.layer}
        return key | {"settings": self.settings} if self.settings else key

    @property
    def _device(self) -> torch.device:
        weights = self.encode.parameters() if isinstance(self.encode, nn.Module) else iter(())
        return next((weight.device for weight in weights), torch.device("cpu"))

    def on(self, device: torch.device) -> "Backbone":
        """This backbone on a device, a copy of it where it has to move; what is not a torch module stays."""
        if not isinstance(self.encode, nn.Module) or device == self._device:
            return self
        return replace(self, encode=deepcopy(self.encode).to(device))

    @torch.inference_mode()
    def __call__(self, inputs: Images) -> Float[Tensor, "b d"]:
        """Features float32 of uint8 images (B, H, W, 3), or of texts (B,) for a text encoder.

        Images of several sizes come as an object array (B,) of uint8 (h, w, 3); for a transform an iterator may make
        each when its turn comes. Raises InvalidInputError if the network is not in eval mode or does not return one row
        per input.
        """
        if isinstance(self.encode, nn.Module) and any(module.training for module in self.encode.modules()):
            raise InvalidInputError(
                f"Backbone {self.name!r}: expected a network in eval mode, but part of it is in training mode; "
                "call .eval() on it."
            )
        batch = inputs if self.transform is None else self.transform.prepare(inputs, self._device)
        if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.device.type != "cpu":
            return self._encoded(batch)
        at_once = max(1, _CPU_PIXELS // (batch.shape[2] * batch.shape[3]))
        return torch.cat([self._encoded(part) for part in batch.split(at_once)])

    def _encoded(self, batch: Any) -> Tensor:
        features = torch.as_tensor(self.encode(batch)).float().cpu()
        if features.ndim != 2 or len(features) != len(batch):
            raise InvalidInputError(
                f"Backbone {self.name!r}: expected features of shape ({len(batch)}, D), "
                f"but got {tuple(features.shape)}; pool its output to one row per input."
            )
        return features


def _lines(content: dict[str, Any], indent: str = "  ") -> Iterator[str]:
    """A line for each entry, and for each in it."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {value if isinstance(value, str) else json.dumps(value)}"


def freeze(
    name: str,
    encoder: nn.Module,
    transform: Transform | None,
    layer: str = "penultimate",
    *,
    card: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Backbone:
    """The backbone of an encoder, which is put into eval mode and float32, without gradients."""
    encoder = encoder.float().eval().requires_grad_(False)
    # The layout that convolutions like; in it PyTorch's group normalisation is off by 1e-4 on a CPU.
    if not any(isinstance(module, nn.GroupNorm) for module in encoder.modules()):
        encoder = encoder.to(memory_format=torch.channels_last)
    if versions := library_versions(encoder):
        settings = (settings or {}) | {"libraries": versions}
    return Backbone(name, encoder, fingerprint_weights(encoder), transform, layer, card, settings)


def fingerprint_weights(network: nn.Module) -> str:
    """Hash of a network's class, parameters and buffers: of one that its name, in the key too, tells from others."""
    buffers = dict(network.named_buffers())  # those that are not saved among them
    state = {name: tensor.detach().contiguous().numpy() for name, tensor in (network.state_dict() | buffers).items()}
    return fingerprint({"class": type(network).__qualname__, "state": state})


def library_versions(network: nn.Module) -> dict[str, str]:
    """The versions of the packages whose modules a network has, by name, but torch's and our own."""
    packages = {type(module).__module__.partition(".")[0] for module in network.modules()} - {"torch", "nml_kit"}
    versions = {name: getattr(sys.modules.get(name), "__version__", "") for name in sorted(packages)}
    return {name: version for name, version in versions.items() if version}


def library(name: str, extra: str) -> Any:
    """An optional library; MissingDependencyError with the `extra` of nml_kit to install."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{error.name or name} is needed for this backbone: pip install 'nml_kit[{extra}]'."
        ) from error


@contextmanager
def weights_of(name: str) -> Iterator[None]:
    """A block that loads weights by a library, from the hub or a directory; DataFileError if it cannot."""
    try:
        yield
    except NMLError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise DataFileError(
            f"Expected the files of {name}, on the hub or in a directory of that name, got {type(error).__name__}: "
            f"{error} Check the name, the path and the connection."
        ) from error
