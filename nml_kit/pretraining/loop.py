"""What supervised and contrastive pre-training share: the transform, checkpoints, the card."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from tqdm import tqdm

from nml_kit.backbones import ImageTransform
from nml_kit.data import Task, noise_fingerprint
from nml_kit.noise import CaptionNoise, LabelNoise
from nml_kit.pretraining.distributed import Processes
from nml_kit.store import read_tensors, write_tensors

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


def train_epochs(
    processes: Processes,
    history: History,
    epochs: int,
    one_epoch: Callable[[int], dict[str, float]],
    save: Callable[[], None],
    *,
    title: str,
    progress: bool,
) -> None:
    """Train the epochs that `history` has no row of; it gets the row of each, and the leading process saves all."""
    start = len(history)
    for epoch in tqdm(range(start, epochs), title, epochs, initial=start, unit="epoch",
                      disable=not (progress and processes.leads), leave=False):  # fmt: skip
        with processes.lockstep():
            row = one_epoch(epoch)
        history.append({"epoch": epoch + 1, **row})
        with processes.agreed():
            if processes.leads:
                save()


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


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser keeps, as "PART/PARAMETER", or "group/NUMBER" for the steps that some count by group."""
    state = {f"{part}/{name}": values for name, parameter in network.named_parameters()
             for part, values in optimizer.state[parameter].items()}  # fmt: skip
    groups = enumerate(optimizer.param_groups)
    return state | {f"group/{number}": group["step"] for number, group in groups if "step" in group}


def restore_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, state: Tensors) -> None:
    """Set what `optimizer_state` gave, in the memory layout of the parameters: it decides the last bits of sums."""
    parameters, fused = dict(network.named_parameters()), optimizer.param_groups[0].get("fused")
    for key, values in state.items():
        part, _, name = key.partition("/")
        if part == "group":
            optimizer.param_groups[int(name)]["step"] = values
        elif part == "step":
            optimizer.state[parameters[name]][part] = values.to(parameters[name].device) if fused else values
        else:
            like = torch.empty_like(parameters[name], requires_grad=False)
            optimizer.state[parameters[name]][part] = like.copy_(values)


def pretraining_card(
    task: Task,
    noise: LabelNoise | CaptionNoise,
    recipe: BaseModel,
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
