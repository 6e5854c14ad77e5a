"""What a contrastive model does without any head: naming images by class texts, finding captions and images.

N samples, U distinct captions, K classes, E dimensions of the space that images and texts share.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nml_kit.backbones import (
    Backbone,
    ImageTower,
    class_embeddings,
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
from nml_kit.pretraining import CAPTION_TEMPLATES
from nml_kit.store import Store

PHOTO_TEMPLATES = ("a photo of a {}.",)  # Radford et al. (2021), section 3.1.4
_ROWS_AT_ONCE = 1024


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
    is the highest cosine. The default templates are the forms of the pre-training captions, or for another model than
    "clip-compact", which learns from photos, "a photo of a {}."; ImageNet's WordNet ids are named in English.
    `backbone` is contrastive, or its name ("nml:DIGEST"); its features of the whole task are taken from the store, or
    extracted into it.
    Columns: task, sample (id), label, predicted (0..K−1), correct (bool), chance: the share of all images that get this
    image's label, so that its mean is the accuracy of the same predictions in random order. A uniform guess, 1/K, is
    no fair reference where classes differ in size: always naming a large one is more often right.
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
    clip, features = _model_and_features(backbone, task, split, store)
    templates = templates or (CAPTION_TEMPLATES if is_compact(clip) else PHOTO_TEMPLATES)
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
    clip, features = _model_and_features(backbone, task, split, store)
    chosen = task.select(split=split)
    captions, caption_of = np.unique(chosen.captions, return_inverse=True)
    with torch.inference_mode():
        images = _image_vectors(clip, features)
        texts = text_embeddings(clip, tokenize(captions.tolist(), clip.context_length))
    matches = torch.from_numpy(caption_of)
    ranks = {
        "image→text": (_ranks(images, texts, matches, torch.arange(len(texts))), chosen.ids),
        "text→image": (_ranks(texts, images, torch.arange(len(texts)), matches), captions),
    }
    matching = {"image→text": np.ones(len(images), dtype=int), "text→image": np.bincount(caption_of)}
    candidates = {"image→text": len(texts), "text→image": len(images)}
    return pd.concat([
        pd.DataFrame({"task": task.name, "direction": direction, "k": k, "sample": samples, "hit": rank <= k,
                      "chance": _chance(matching[direction], candidates[direction], k)})
        for direction, (rank, samples) in ranks.items() for k in ks
    ], ignore_index=True)  # fmt: skip


def _model_and_features(backbone: str | Backbone, task: Task, split: str, store: Store | None) -> tuple[Any, Features]:
    found = load_backbone(backbone, store=store) if isinstance(backbone, str) else backbone
    if not isinstance(found.encode, ImageTower):
        raise InvalidInputError(
            f"Expected a backbone with a text network, got {found.name!r}; pre-train with caption noise "
            "(inject_caption_noise), or load 'clip-compact'."
        )
    if task.image_data is None:
        raise InvalidInputError(f"Expected a task of images, got the text task {task.name!r}.")
    return found.encode.clip, extract_features(task, found, store=store, progress=False).select(split=split)


def _image_vectors(clip: Any, features: Features) -> Tensor:
    """Unit vectors (N, E): the projection of the frozen features."""
    return F.normalize(project(clip, torch.from_numpy(np.array(features.values))), dim=-1)


def _ranks(queries: Tensor, candidates: Tensor, query_groups: Tensor, candidate_groups: Tensor) -> NDArray[np.int64]:
    """Place (n,) from 1 of each query's nearest candidate of its own group, behind wrong ones that are as near."""
    ranks = []
    for vectors, groups in zip(queries.split(_ROWS_AT_ONCE), query_groups.split(_ROWS_AT_ONCE), strict=True):
        cosines, right = vectors @ candidates.T, groups[:, None] == candidate_groups
        best = cosines.masked_fill(~right, -2).amax(1, keepdim=True)
        ranks.append(1 + ((cosines >= best) & ~right).sum(1))
    return torch.cat(ranks).numpy()


def _chance(matching: NDArray[np.int64], candidates: int, k: int) -> NDArray[np.float64]:
    """P(a right one among the first k) for candidates in random order: 1 − Π (N−m−j)/(N−j) over j < k."""
    places = np.arange(min(k, candidates))
    return 1 - np.prod(np.clip(candidates - matching[:, None] - places, 0, None) / (candidates - places), axis=1)
