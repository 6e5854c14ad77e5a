"""What test_large_scale.py runs, alone and in several processes, and the data that it makes for that.

`python -m torch.distributed.run --nproc_per_node 2 -m tests.pretraining.at_scale DATA STORE REPORTS`.
"""

import json
import os
import sys
from pathlib import Path

import pandas as pd
import torch

from nml_kit import Store, inject_label_noise, load_profile, load_task, run_study
from nml_kit.audit import practical_tasks, run_practical
from nml_kit.backbones import Backbone
from nml_kit.data import Task
from nml_kit.noise import LabelNoise
from nml_kit.pretraining import ShardRecipe, TimmRecipe, pretrain, pretrain_on_shards
from nml_kit.study import Profile
from tests.miniatures import add_tiny_clips

RANK = int(os.environ.get("RANK", "0"))
PATTERN = "{000000..000005}.tar"
SMALL = {"precision": "float32", "epochs": 3}
# Without stochastic depth, which each process draws for itself.
TIMM = TimmRecipe(procedure="A3", architecture="timm:test_resnet", batch_size=32, accumulate=2, learning_rate=0.02,
                  train_size=32, test_size=40, repeats=2, **SMALL)  # fmt: skip
SHARDS = ShardRecipe(architecture="open_clip:nml-tiny-RN", batch_size=24, streams=6, shuffle=4, warmup_steps=2,
                     learning_rate=2e-3, **SMALL)  # fmt: skip


def noisy_imagenet(data: Path) -> tuple[Task, LabelNoise]:
    task = load_task(data / "imagenet")
    train = task.select(split="train")
    return task, inject_label_noise(train.labels, 0.125, num_classes=8, seed=0, ids=train.ids)


def supervised(data: Path, store: Store, recipe: TimmRecipe = TIMM) -> Backbone:
    task, noise = noisy_imagenet(data)
    return pretrain(task, noise, recipe=recipe, seed=0, store=store, progress=False)


def contrastive(data: Path, store: Store, recipe: ShardRecipe = SHARDS) -> Backbone:
    return pretrain_on_shards(data / "shards" / PATTERN, recipe=recipe, seed=0, store=store, progress=False)


def miniature_of(profile: Profile) -> Profile:
    """The profile with tiny networks and the data sets that the tests make; all else is as it is."""
    small = {"epochs": 1, "architecture": "timm:test_resnet", "batch_size": 32, "train_size": 32, "test_size": 32}
    data = {"task": "imagenet", "shards": f"shards/{PATTERN}"}
    downstream = {"id": ["resisc45"], "ood_from": {"domainnet:real,sketch,clipart": ["real", "sketch"],
                                                   "imagenet+imagenet-r": ["imagenet"]}}  # fmt: skip
    content = profile.model_dump() | {
        "ratios": [0.0, 0.25], "pretraining": data, "recipe": profile.recipe.model_dump() | small,
        "contrastive": SHARDS.model_dump() | {"epochs": 1}, "downstream": downstream, "head_epochs": 2,
    }  # fmt: skip
    return Profile.model_validate(content)


def studies(store: Store) -> list[dict]:
    """The tables of both studies of the miniature `paper` profile."""
    profile = miniature_of(load_profile("paper"))
    rows = [run_study(profile, objective=objective, methods=("LP", "NMTune"), store=store, jobs=1, progress=False).rows
            for objective in ("supervised", "contrastive")]  # fmt: skip
    return pd.concat(rows, ignore_index=True).to_dict("records")


def text_study(data: Path, store: Store) -> list[dict]:
    """The table of a tiny text encoder on two sets as GLUE's and GLUE-X's: the code of the language notebook."""
    profile, name = load_profile("smoke"), "glue:sst2+imdb"
    tasks = practical_tasks(profile, [name], {name: ["imdb"]}, {name: ["glue:sst2"]})
    found = run_practical(profile, [f"hf:{data / 'bert'}"], tasks, epochs=2, store=store, jobs=1, progress=False)
    return found.rows.to_dict("records")


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, store, reports = Path(sys.argv[1]), Store(sys.argv[2]), Path(sys.argv[3])
    add_tiny_clips(data / "configs")
    histories = [run(data, store).card["history"] for run in (supervised, contrastive)]
    report = json.dumps({"histories": histories, "studies": studies(store), "texts": text_study(data, store)})
    (reports / f"{RANK}.json").write_text(report, encoding="utf-8")
