"""What test_distributed.py launches in several processes, and an example of a script that can be launched.

`python -m torch.distributed.run --nproc_per_node 2 -m tests.pretraining.together whole STORE REPORTS`; nothing in
`whole` but the file of its report depends on the number of processes.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from nml_kit import Recipe, Store, extract_features, inject_label_noise, load_backbone, pretrain
from nml_kit.backbones import build_network
from nml_kit.errors import InvalidInputError, NMLError
from nml_kit.features import features as features_module
from nml_kit.pretraining import launched_processes, loop
from nml_kit.pretraining.supervised import SupervisedTraining
from tests.conftest import make_task

SHARD_ROWS = 20
TASK = make_task(per_class=23)  # 92 samples in 5 shards, the last of 12; 69 to train on
TRAIN = TASK.select(split="train")
NOISE = inject_label_noise(TRAIN.labels, 0.1, num_classes=4, seed=0, ids=TRAIN.ids)
RECIPE = Recipe(epochs=3, batch_size=24, learning_rate=0.01)  # batches of 24, 24 and 21
RANK = int(os.environ.get("RANK", "0"))


class DoublePrecision(nn.Module):
    """A network in float64, where rounding is too small to be taken for a wrong formula."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.double())


def train_in_double_precision() -> tuple[list[float], list[float]]:
    """Losses of two epochs, whose last batch of 5 is one sample for some and passes are uneven; summed weights."""
    processes = launched_processes()
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.05, accumulate=2)
    training = SupervisedTraining(TASK, NOISE, recipe, 0, processes)
    training.use(DoublePrecision(build_network("compact-resnet", num_classes=4, seed=0)))
    parallel = processes.data_parallel(training.network)
    losses = [training.train_epoch(parallel, epoch)["loss"] for epoch in range(2)]
    return losses, [float(values.double().sum()) for values in training.network.state_dict().values()]


def error_of(backbone, store: Store) -> str:
    try:
        extract_features(TASK, backbone, store=store, progress=False)
    except NMLError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def not_finite_for_one_sample(images):
    values = images.reshape(len(images), -1)[:, :6].astype(np.float32)
    values[(images == TASK.images[25]).all(axis=(1, 2, 3))] = np.nan
    return values


def whole(store: Store) -> dict:
    """Errors that all processes must hear of, then everything that works."""
    bad = load_backbone(not_finite_for_one_sample, fingerprint_of_weights="bad")
    own = load_backbone(not_finite_for_one_sample, fingerprint_of_weights=f"of process {RANK}")
    errors = {"one": error_of(bad, store), "different": error_of(own, store)}
    backbone = pretrain(TASK, NOISE, recipe=RECIPE, seed=0, store=store, progress=False)
    losses = [row["loss"] for row in backbone.card["history"]]
    # Of fixed weights: those of `pretrain` differ in the last digits between one process and two.
    values = extract_features(TASK, load_backbone("compact-resnet", seed=3), store=store, progress=False).values
    in_double, weights = train_in_double_precision()
    return {"errors": errors, "losses": losses, "features": float(values.sum()), "double": in_double,
            "weights": weights}  # fmt: skip


def first_pixels(images):
    return images.reshape(len(images), -1)[:, :6].astype(np.float32)


def extract(store: Store, log: Path, fail_at: int | None = None) -> None:
    """Extract and log each encoded shard; process 1 fails instead of encoding its shard number `fail_at`."""
    calls = []

    def encode(images):
        if RANK == 1 and len(calls) == fail_at:
            raise InvalidInputError("a bad image")
        calls.append(len(images))
        (log / f"{RANK}.txt").write_text("\n".join(map(str, calls)), encoding="utf-8")
        return first_pixels(images)

    extract_features(TASK, load_backbone(encode, fingerprint_of_weights="pixels"), store=store, progress=False)


def pretrain_until_killed(store: Store) -> None:
    """Pre-train; the process that writes kills itself after its second checkpoint."""
    write = loop.write_checkpoint

    def write_and_die(path, training, history):
        write(path, training, history)
        if len(history) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.write_checkpoint = write_and_die
    pretrain(TASK, NOISE, recipe=RECIPE, seed=0, store=store, progress=False)


if __name__ == "__main__":
    features_module.SHARD_ROWS = SHARD_ROWS
    mode, store, reports = sys.argv[1], Store(sys.argv[2]), Path(sys.argv[3])
    if mode == "whole":
        (reports / f"{RANK}.json").write_text(json.dumps(whole(store)), encoding="utf-8")
    elif mode == "broken":
        try:
            extract(store, reports, fail_at=1)
        except NMLError as error:
            (reports / f"{RANK}.json").write_text(json.dumps(f"{type(error).__name__}: {error}"), encoding="utf-8")
        pretrain_until_killed(store)
