"""Beside the heads: the history of pre-training, what contrastive networks do without any head, what steps cost.

N samples, U distinct captions, K classes, E dimensions of the space that images and texts share.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from joblib import cpu_count
from threadpoolctl import threadpool_limits
from torch import Tensor

from nml_kit.backbones import (
    Backbone,
    ImageTower,
    class_embeddings,
    image_network,
    is_compact,
    load_backbone,
    named_classes,
    project,
    text_embeddings,
    tokenize,
)
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, extract_features
from nml_kit.pretraining import CAPTION_TEMPLATES, ContrastiveRecipe, caption_templates, one_thread
from nml_kit.store import Store
from nml_kit.study.conditions import (
    Origin,
    RunOptions,
    downstream_task,
    networks_and_features,
    pretraining_task,
    study_origins,
)
from nml_kit.study.profile import Objective, Profile

PHOTO_TEMPLATES = ("a photo of a {}.",)  # Radford et al. (2021), section 3.1.4
_ROWS_AT_ONCE = 1024


def pretraining_history(
    profile: Profile, objective: Objective = "supervised", **options: Unpack[RunOptions]
) -> pd.DataFrame:
    """What pre-training measured after each epoch, one row per ratio, seed and epoch.

    Columns: ratio, seed, objective, epoch (from 1), loss (nats), test_accuracy (clean test split; contrastive:
    zero-shot), memorised (see `pretrain`, NaN at ratio 0), the last two fractions.

    >>> from nml_kit import load_profile
    >>> history = pretraining_history(load_profile("smoke"), jobs=1, progress=False)
    >>> len(history), history["memorised"].isna().tolist()
    (2, [True, False])
    """
    _, *trained = study_origins(profile, objective)  # the random baseline comes first
    made = networks_and_features(profile, trained, {}, **options)
    rows = [origin._asdict() | epoch for origin, backbone, _ in made for epoch in (backbone.card or {})["history"]]
    return pd.DataFrame(rows).reindex(columns=[*Origin._fields, "epoch", "loss", "test_accuracy", "memorised"])


def zero_shot_samples(profile: Profile, **options: Unpack[RunOptions]) -> pd.DataFrame:
    """Was the class of each test image named without a head? The pre-training task and the profile's OOD tasks.

    One row per ratio (NaN: random weights), seed, task and test image, in the columns of `Study.samples` with protocol
    and method "zero-shot", and `chance`. All networks are contrastive; templates are those of the captions that they
    learned from, where these are in memory, also for the random ones.
    """
    in_memory = isinstance(profile.contrastive, ContrastiveRecipe)
    forms = caption_templates(pretraining_task(profile).select(split="train")) if in_memory else None
    measure = partial(zero_shot_predictions, templates=forms)
    return _of_every_network(measure, profile, **options).drop(columns=["label", "predicted"])


def retrieval_samples(profile: Profile, **options: Unpack[RunOptions]) -> pd.DataFrame:
    """Was the right caption, or image, among the k nearest? As `zero_shot_samples`, with columns direction and k."""
    return _of_every_network(retrieval_recall, profile, **options).rename(columns={"hit": "correct"})


def _of_every_network(
    measure: Callable[..., pd.DataFrame], profile: Profile, **options: Unpack[RunOptions]
) -> pd.DataFrame:
    """What is measured of each contrastive network on the pre-training task's test split and the OOD tasks."""
    source, frames = pretraining_task(profile), []
    tasks = {source.name: source.select(split="test")}
    tasks |= {name: downstream_task(profile, name) for name in profile.downstream.ood_tasks}
    for origin, backbone, _ in networks_and_features(profile, study_origins(profile, "contrastive"), tasks, **options):
        for task in tasks.values():
            table = measure(backbone, task, store=options.get("store"))
            frames.append(table.assign(protocol="zero-shot", method="zero-shot", **origin._asdict()))
    return pd.concat(frames, ignore_index=True)


def above_chance(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples with `correct` minus `chance` as `correct`: its mean is the margin above chance (fraction)."""
    return samples.assign(correct=samples["correct"].astype(float) - samples["chance"])


def zero_shot_predictions(
    backbone: str | Backbone,
    task: Task,
    *,
    templates: Sequence[str] | None = None,
    split: str = "test",
    store: Store | None = None,
) -> pd.DataFrame:
    """The class whose text is nearest to each image of a split, one row per image.

    A class's vector is the mean over `templates`, with its name for "{}", of unit vectors, normalised again; nearest
    is the highest cosine. The default templates are the forms of the captions that the network learned from, as its
    card says (else those of the shipped icons for "clip-compact", "a photo of a {}." for others); ImageNet's WordNet
    ids are named in English. `backbone` is contrastive, or its name
    ("nml:DIGEST"); its features are taken from the store, or extracted into it.
    Columns: task, sample (id), label, predicted (0..K−1), correct (bool), chance: the share of all images that get this
    image's label. Its mean is the accuracy of the same predictions in random order: where classes differ in size,
    always naming a large one is right more often than 1/K.
    Raises UnknownNameError for an unknown backbone or split, InvalidInputError for one without a text network, for a
    text task, or a template without "{}".
    Source: Radford et al. (2021), section 3.1; the paper's section 2 (zero-shot evaluation of CLIP models).

    >>> from nml_kit import load_task
    >>> task = load_task("icons").limit(classes=5, train_per_class=1, seed=0)
    >>> table = zero_shot_predictions("clip-compact", task)
    >>> bool(len(table) == (task.splits == "test").sum()), bool(table["predicted"].max() < 5)
    (True, True)
    """
    if templates is not None and not (templates and all("{}" in template for template in templates)):
        raise InvalidInputError(f"Expected templates with '{{}}' for the class name, got {list(templates)!r}.")
    backbone, features = _with_features(backbone, task, split, store)
    clip, learned = backbone.encode.clip, (backbone.card or {}).get("templates")  # type: ignore[attr-defined]
    templates = templates or learned or (CAPTION_TEMPLATES if is_compact(clip) else PHOTO_TEMPLATES)
    with torch.inference_mode():
        scores = _image_vectors(clip, features) @ class_embeddings(clip, named_classes(task.class_names), templates).T
    predicted = scores.argmax(1).numpy()
    shares = np.bincount(predicted, minlength=task.num_classes) / len(predicted)
    return pd.DataFrame({
        "task": task.name, "sample": features.ids, "label": features.labels, "predicted": predicted,
        "correct": predicted == features.labels, "chance": shares[features.labels],
    })  # fmt: skip


def retrieval_recall(
    backbone: str | Backbone,
    task: Task,
    *,
    ks: Sequence[int] = (1, 5, 10),
    split: str = "test",
    store: Store | None = None,
) -> pd.DataFrame:
    """Whether the right one is among the k nearest captions of an image, or images of a caption: one row per query.

    Equal captions are one caption. image→text: each of the N images asks for its caption among the U distinct ones;
    text→image: each distinct caption asks for any image that has it among all N. Only candidates that are nearer
    (higher cosine), or as near and wrong, count as ahead: a model that cannot tell them apart hits nothing by luck.
    Recall@k is the mean of `hit`. `chance` is its expectation for candidates in random order: k/U, and for a caption of
    m images 1 − C(N−m, k)/C(N, k).
    Columns: task, direction, k, sample (the image's id, or the caption), hit (bool), chance (fraction).
    Raises the errors of `zero_shot_predictions`, and InvalidInputError for a k below 1.
    Source: Radford et al. (2021), appendix on image and text retrieval.

    >>> from nml_kit import load_task
    >>> task = load_task("icons").limit(classes=2, train_per_class=1, seed=0)
    >>> table = retrieval_recall("clip-compact", task, ks=(1000,))
    >>> table.groupby("direction")[["hit", "chance"]].mean().to_numpy().tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    if not ks or min(ks) < 1:
        raise InvalidInputError(f"Expected ks of at least 1, the numbers of nearest candidates, got {list(ks)!r}.")
    backbone, features = _with_features(backbone, task, split, store)
    clip = backbone.encode.clip  # type: ignore[attr-defined]
    chosen = task.select(split=split)
    captions, caption_of = np.unique(chosen.captions, return_inverse=True)
    with torch.inference_mode():
        images = _image_vectors(clip, features)
        texts = text_embeddings(clip, tokenize(captions.tolist(), clip.context_length))
    of_image, of_text, tables = torch.from_numpy(caption_of), torch.arange(len(texts)), []
    directions = {
        "image→text": (chosen.ids, _ranks(images, texts, of_image, of_text), np.ones(len(images), int), len(texts)),
        "text→image": (captions, _ranks(texts, images, of_text, of_image), np.bincount(caption_of), len(images)),
    }
    for direction, (samples, ranks, matching, candidates) in directions.items():
        table = pd.DataFrame({"task": task.name, "direction": direction, "sample": samples})
        tables += [table.assign(k=k, hit=ranks <= k, chance=_chance(matching, candidates, k)) for k in ks]
    return pd.concat(tables, ignore_index=True)[["task", "direction", "k", "sample", "hit", "chance"]]


def _with_features(backbone: str | Backbone, task: Task, split: str, store: Store | None) -> tuple[Backbone, Features]:
    """A contrastive backbone, and its features of a split."""
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, store=store if backbone.startswith("nml:") else None)
    if not isinstance(backbone.encode, ImageTower):
        raise InvalidInputError(
            f"Expected a backbone with a text network, got {backbone.name!r}; pre-train with caption noise "
            "(inject_caption_noise), or load 'clip-compact'."
        )
    if task.image_data is None:
        raise InvalidInputError(f"Expected a task of images, got the text task {task.name!r}.")
    return backbone, extract_features(task, backbone, store=store, progress=False).select(split=split)


def _image_vectors(clip: Any, features: Features) -> Tensor:
    """Unit vectors (N, E): the projection of the frozen features."""
    return F.normalize(project(clip, torch.from_numpy(np.array(features.values))), dim=-1)


def _ranks(
    queries: Tensor, candidates: Tensor, query_groups: Tensor, candidate_groups: Tensor
) -> Int[np.ndarray, " n"]:
    """Place (n,) from 1 of each query's nearest candidate of its own group, behind wrong ones that are as near."""
    ranks = []
    for vectors, groups in zip(queries.split(_ROWS_AT_ONCE), query_groups.split(_ROWS_AT_ONCE), strict=True):
        cosines, right = vectors @ candidates.T, groups[:, None] == candidate_groups
        best = cosines.masked_fill(~right, -2).amax(1, keepdim=True)
        ranks.append(1 + ((cosines >= best) & ~right).sum(1))
    return torch.cat(ranks).numpy()


def _chance(matching: Int[np.ndarray, " n"], candidates: int, k: int) -> Float[np.ndarray, " n"]:
    """P(a right one among the first k) for candidates in random order: 1 − Π (N−m−j)/(N−j) over j < k."""
    places = np.arange(min(k, candidates))
    return 1 - np.prod(np.clip(candidates - matching[:, None] - places, 0, None) / (candidates - places), axis=1)


def seconds_in_turn(calls: Mapping[tuple[str, str], Callable[[], object]], *, repeats: int) -> pd.DataFrame:
    """Seconds of each call, named by method and step, one after the other in each of `repeats` rounds, on one thread.

    One more round comes first and is not counted: what is loaded or allocated once is paid there. Columns: method,
    step, repeat (from 1), seconds. Raises InvalidInputError for fewer than one repeat.

    >>> seconds_in_turn({("LP", "fit"): list, ("LP", "predict"): list}, repeats=2)["repeat"].tolist()
    [1, 1, 2, 2]
    """
    if repeats < 1:
        raise InvalidInputError(f"Expected at least one repeat, got {repeats}.")
    rows = []
    with threadpool_limits(1), one_thread():
        for repeat in range(repeats + 1):
            for (method, step), call in calls.items():
                started = time.perf_counter()
                call()
                rows.append((method, step, repeat, time.perf_counter() - started))
    return pd.DataFrame(rows[len(calls) :], columns=["method", "step", "repeat", "seconds"])


def backbone_parameters(backbone: Backbone) -> int:
    """Number of parameters that features go through: of a contrastive model its image network alone.

    >>> from nml_kit import load_backbone
    >>> backbone_parameters(load_backbone("clip-compact")) == backbone_parameters(load_backbone("compact-resnet"))
    True
    """
    return sum(parameter.numel() for parameter in image_network(backbone.encode).parameters())


def two_digits(value: float) -> str:
    """Two significant digits as text, below a million without an exponent."""
    return f"{float(f'{value:.2g}'):,g}"


def machine_in_words() -> str:
    """What seconds depend on now: cores, threads that are used, libraries and, where the system tells, the load."""
    cores = cpu_count()
    text = f"one thread of {cores} core{'s' if cores > 1 else ''} ({platform.machine()}, torch {torch.__version__})"
    if not hasattr(os, "getloadavg"):
        return text
    load = os.getloadavg()[0]
    state = "busy: these seconds are larger than on an idle machine" if load > cores else "not overloaded"
    return f"{text}; load of the last minute {load:.1f}, {state}"
