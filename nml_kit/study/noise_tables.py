"""Tables of what noise did to a pre-training task: sample by sample, and from which class into which."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from nml_kit.data import Task
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.inference import ratio_label
from nml_kit.study.conditions import caption_noise, label_noise
from nml_kit.study.profile import Objective, Profile

NoiseKind = Literal["uniform", "asymmetric", "confusion"]
_NOUNS = {"supervised": "labels", "contrastive": "captions"}


def noisy_samples(
    profile: Profile, task: Task, ratio: float, *, objective: Objective, kind: NoiseKind, seed: int
) -> pd.DataFrame:
    """What each training sample of `task` is, and what the network is told: one row per sample, in the task's order.

    Columns: own, given (classes, 0..K−1), own_caption, given_caption, changed. Supervised pre-training has noisy
    labels, of the `kind`; contrastive has exchanged captions: `given` is the class of the sample whose caption it is
    and may equal `own`; `kind` plays no part. Raises UnknownNameError for another objective or kind.

    >>> from nml_kit import load_profile
    >>> from nml_kit.study.conditions import pretraining_task
    >>> profile = load_profile("smoke")
    >>> wanted = {"objective": "supervised", "kind": "uniform", "seed": 0}
    >>> table = noisy_samples(profile, pretraining_task(profile), 0.25, **wanted)
    >>> len(table), int(table["changed"].sum()), bool((table["own"] == table["given"])[table["changed"]].any())
    (72, 18, False)
    """
    for what, name, known in (("objective", objective, Objective), ("kind of noise", kind, NoiseKind)):
        if name not in get_args(known):
            raise unknown_name(what, str(name), get_args(known))
    train = task.select(split="train")
    truth = {"own": train.labels, "given": train.labels}
    columns = truth | {"own_caption": train.captions, "given_caption": train.captions}
    if objective == "supervised":
        labels = label_noise(profile.model_copy(update={"noise": kind}), task, ratio, seed)
        return pd.DataFrame(columns | {"given": labels.noisy, "changed": labels.mask})
    texts = caption_noise(task, ratio, seed)
    given = {"given": train.labels[texts.source], "given_caption": texts.noisy}
    return pd.DataFrame(columns | given | {"changed": texts.mask})


def class_counts(own: ArrayLike, given: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """How many samples of class i (row) were given class j (column), int64 (K, K); `own`, `given` are (N,), 0..K−1.

    Raises InvalidInputError if the two differ in length or a class is out of range.

    >>> class_counts([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1, 1], [0, 1]]
    """
    rows, columns = np.asarray(own, dtype=np.int64), np.asarray(given, dtype=np.int64)
    both = np.concatenate([rows, columns])
    if rows.shape != columns.shape or (both.size and not (both.min() >= 0 and both.max() < num_classes)):
        raise InvalidInputError(
            f"Expected two arrays of one length with classes in 0..{num_classes - 1}, got shapes {rows.shape} and "
            f"{columns.shape}, classes {both.min(initial=0)}..{both.max(initial=0)}."
        )
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


def noise_finding(samples: pd.DataFrame, objective: Objective) -> str:
    """How many of the `samples` (see `noisy_samples`) changed, and how evenly over the classes.

    >>> table = pd.DataFrame({"own": [0, 0, 1, 1], "given": [0, 1, 1, 1], "changed": [False, True, False, False]})
    >>> noise_finding(table, "supervised")
    '1 of 4 labels changed (25 %), 0 % to 50 % of a class'
    """
    changed = samples["changed"]
    shares = changed.groupby(samples["own"]).mean()
    share, least, most = (ratio_label(round(number, 3)) for number in (changed.mean(), shares.min(), shares.max()))
    noun = _NOUNS[objective]
    finding = f"{changed.sum():,} of {len(samples):,} {noun} changed ({share}), {least} to {most} of a class"
    harmless = int((changed & (samples["own"] == samples["given"])).sum())
    return finding + (f"; {harmless:,} stay within their class" if objective == "contrastive" else "")


def described_changes(
    samples: pd.DataFrame, class_names: Sequence[str], objective: Objective, *, own_class: int | None, most: int
) -> tuple[NDArray[np.intp], list[str], str]:
    """The first rows, at most `most`, of `samples` that changed, what happened to each, and a heading.

    `samples` is that of `noisy_samples`; with `own_class` those of that class alone. A line reads own class → class
    given, or own caption → caption given.

    >>> table = pd.DataFrame({"own": [0, 1], "given": [0, 0], "changed": [False, True]})
    >>> described_changes(table, ["cat", "dog"], "supervised", own_class=None, most=5)[1:]
    (['dog → cat'], '1 of 1 changed training samples, own class → class given:')
    """
    wanted = samples["changed"] if own_class is None else samples["changed"] & (samples["own"] == own_class)
    rows = np.flatnonzero(wanted)[:most]
    noun = "class" if objective == "supervised" else "caption"
    whose = "" if own_class is None else f" of class {class_names[own_class]}"
    heading = f"{len(rows)} of {wanted.sum():,} changed training samples{whose}, own {noun} → {noun} given:"
    shown = samples.iloc[rows]
    if objective == "supervised":
        pairs = zip(shown["own"], shown["given"], strict=True)
        return rows, [f"{class_names[own]} → {class_names[given]}" for own, given in pairs], heading
    texts = zip(shown["own_caption"], shown["given_caption"], strict=True)
    return rows, [f"“{own}” → “{given}”" for own, given in texts], heading
