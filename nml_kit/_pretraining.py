"""What supervised and contrastive pre-training share: the transform, checkpoints, the card."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nml_kit.datasets import Task
from nml_kit.files import read_tensors, write_tensors
from nml_kit.noise import CaptionNoise, LabelNoise
from nml_kit.recipes import ContrastiveRecipe, Recipe
from nml_kit.records import noise_fingerprint
from nml_kit.transforms import ImageTransform

WEIGHTS = "weights.safetensors"
History = list[dict[str, float]]
Tensors = Mapping[str, Tensor]


def standardising_transform(train: Task) -> ImageTransform:
    """Zero mean and unit variance per channel over the train images, rounded to be readable in the card."""
    pixels = np.asarray(train.images).reshape(-1, 3) / 255
    mean, std = pixels.mean(axis=0).round(4).tolist(), pixels.std(axis=0).round(4).tolist()
    return ImageTransform(mean=tuple(mean), std=tuple(max(value, 1e-3) for value in std))


def write_weights(path: Path, state: Tensors) -> None:
    """Write a network's state as a safetensors file."""
    write_tensors(path, _arrays(state))


def write_checkpoint(path: Path, parts: Mapping[str, Tensors], history: History) -> None:
    """Write named groups of tensors and the rows of the finished epochs, whole or not at all."""
    arrays = {name: array for part, tensors in parts.items() for name, array in _arrays(tensors, f"{part}.").items()}
    write_tensors(path, arrays | {"history": np.frombuffer(json.dumps(history).encode(), dtype=np.uint8)})


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], History]:
    """The groups of tensors and the rows that `write_checkpoint` wrote."""
    arrays = read_tensors(path)
    history = json.loads(arrays.pop("history").tobytes())
    parts: dict[str, dict[str, Tensor]] = {}
    for name, values in arrays.items():
        part, _, parameter = name.partition(".")
        parts.setdefault(part, {})[parameter] = torch.from_numpy(values)
    return parts, history


def pretraining_card(
    task: Task,
    noise: LabelNoise | CaptionNoise,
    recipe: Recipe | ContrastiveRecipe,
    seed: int,
    transform: ImageTransform,
) -> dict[str, Any]:
    """What one needs to know about a pre-trained network, its history apart."""
    objective, kind = ("supervised", noise.kind) if isinstance(noise, LabelNoise) else ("contrastive", "exchange")
    return {
        "objective": objective,
        "task": task.name,
        "num_classes": task.num_classes,
        "recipe": recipe.model_dump(),
        "seed": seed,
        "noise": {"fingerprint": noise_fingerprint(noise), "kind": kind,
                  "seed": noise.seed, "requested_ratio": noise.requested_ratio,
                  "realised_ratio": noise.realised_ratio},
        "transform": asdict(transform),
    }  # fmt: skip


def _arrays(tensors: Tensors, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: tensor.detach().contiguous().cpu().numpy() for name, tensor in tensors.items()}
