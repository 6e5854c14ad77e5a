"""Low-rank adapters by peft on a network of any kind, in place; merged, the network has its own layers again."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from nml_kit.backbones import seeded
from nml_kit.errors import InvalidInputError, MissingDependencyError


def add_adapters(network: nn.Module, rank: int, seed: int) -> Any:
    """Freeze a network and put an adapter on each layer of `adapted_layers`; return the peft model around it.

    The scale is 1 (peft's `lora_alpha` is the rank). An adapter starts at zero, so the network's outputs are as before.
    Source: Hu et al., LoRA, ICLR 2022. Raises InvalidInputError if there is no layer to adapt, MissingDependencyError
    without peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("peft is needed for LoRA: pip install 'nml_kit[hub]'.") from error
    names = list(adapted_layers(network))
    if not names:
        raise InvalidInputError(
            f"Expected a network with convolutions or linear layers for LoRA, but {type(network).__name__} has none; "
            'use method "full".'
        )
    # As one pattern, which must match a whole name: in a list of names, "0" would stand for "stem.1.0" too.
    pattern = "|".join(map(re.escape, names))
    with seeded(seed):
        return get_peft_model(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern))


def adapted_layers(network: nn.Module) -> Iterator[str]:
    """Names of the layers that get an adapter: all linear ones and all convolutions that are not grouped.

    peft cannot merge grouped convolutions, and a depthwise one has few weights as it is. The output layer of
    torch's multi-head attention is not called as a module, an adapter on it would have no effect.

    >>> list(adapted_layers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4))))
    ['0']
    """
    inside = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention))
    for name, module in network.named_modules():
        is_plain = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if name and is_plain and not name.startswith(inside):
            yield name
