"""Two sides compared: the answers of two results, and what training samples are and what networks are told they are.

A result is one objective, method and ratio. "First" and "second" are tables of the answers of the two, parts of
`answers_by_result`; all shares are fractions, means over seeds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix

from nml_kit.data import Task
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.inference import at_ratio, ratio_label, ratios_in_order
from nml_kit.study.conditions import caption_noise, label_noise
from nml_kit.study.profile import Objective, Profile


class ResultKey(NamedTuple):
    """Which answers: the objective of pre-training, its noise as text (see `ratio_label`), and the head."""

    objective: str
    noise: str
    method: str


def answers_by_result(samples: pd.DataFrame) -> dict[ResultKey, pd.DataFrame]:
    """The answers (SAMPLE_COLUMNS and panel, such as "ID · icons") of each result, in the order of their ratios."""
    return {key: part for key, _, part in _by_result(samples)}


def answers_of(answers: Mapping[ResultKey, pd.DataFrame], key: ResultKey) -> pd.DataFrame:
    """The answers of one result; InvalidInputError, naming what there is, if it was not measured."""
    if key not in answers:
        known = sorted({f"{known.objective}, {known.noise}, {known.method}" for known in answers})
        raise InvalidInputError(f"Expected answers of {', '.join(key)}; there are {'; '.join(known)}.")
    return answers[key]


def spectra_by_result(spectra: pd.DataFrame) -> dict[tuple[ResultKey, str], pd.Series]:
    """The spectrum of each result on each panel: σ_i/Σσ (fraction) by index, mean over seeds and held-out domains.

    It ends where the shortest of its spectra, that of the domain with fewest samples, does.
    """
    by_result = {}
    for key, panel, part in _by_result(spectra, "panel"):
        shares = part.groupby("index")["share"].agg(["mean", "size"])
        by_result[key, panel] = shares.loc[shares["size"] == shares["size"].max(), "mean"]
    return by_result


def spectral_means(rows: pd.DataFrame) -> dict[tuple[ResultKey, str], dict[str, float]]:
    """SVE and LSVR (nats) of each result on each panel, means over seeds and held-out domains: "sve", "lsvr"."""
    spectral = rows[rows["metric"].isin(["sve", "lsvr"])]
    return {
        (key, panel): {str(name): float(mean) for name, mean in part.groupby("metric")["value"].mean().items()}
        for key, panel, part in _by_result(spectral, "panel")
    }


def task_changes(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of both on each panel, the largest loss first: name, n (samples), first, second, change."""
    return _changes(first, second, "panel")


def class_changes(first: pd.DataFrame, second: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Accuracy of both on each class of one panel, the largest loss first: name, n (samples), first, second, change."""
    changes = _changes(first, second, "label")
    return changes.assign(name=[class_names[label] for label in changes["name"]])


def changes_in_words(changes: pd.DataFrame, of: str) -> str:
    """How many rows of a table of changes lose, the mean change, and the largest loss."""
    lost, worst = int((changes["change"] < 0).sum()), changes.iloc[int(changes["change"].argmin())]
    words = f"{lost} of {len(changes)} {of} lose accuracy, mean change {changes['change'].mean():+.3f}"
    return f"{words}; most: {worst['name']} {worst['change']:+.3f}" if lost else words


def largest_changes(changes: pd.DataFrame, count: int) -> pd.DataFrame:
    """The `count` rows that change most, either way, the largest loss first."""
    largest = changes["change"].abs().sort_values(ascending=False, kind="stable").index[:count]
    return changes.loc[largest].sort_values(["change", "name"], ignore_index=True)


def confusion_change(first: pd.DataFrame, second: pd.DataFrame, num_classes: int) -> Float[np.ndarray, "k k"]:
    """K×K: by how much the share of a class (row) that is taken for another (column) grows from first to second."""
    shares = [
        confusion_matrix(part["label"], part["prediction"], labels=np.arange(num_classes)).astype(np.float64)
        for part in (first, second)
    ]
    before, after = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in shares)
    return after - before


def changed_samples(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The samples of one panel that second gets right less often than first, the largest loss first.

    Columns: sample, label, first, second (shares of seeds that are right), prediction (what second says most often when
    it is wrong).
    """
    table = pd.DataFrame({"first": _accuracy(first, "sample"), "second": _accuracy(second, "sample")})
    table["label"] = second.groupby("sample")["label"].first()
    wrong = second[~second["correct"]].groupby(["sample", "prediction"]).size().rename("times").reset_index()
    said = wrong.sort_values(["times", "prediction"], ascending=[False, True]).drop_duplicates("sample")
    table["prediction"] = said.set_index("sample")["prediction"]
    lost = table[table["second"] < table["first"]].assign(change=lambda lost: lost["second"] - lost["first"])
    lost = lost.rename_axis("sample").reset_index().sort_values(["change", "sample"], ignore_index=True)
    return lost.drop(columns="change").astype({"prediction": int})


def sample_captions(lost: pd.DataFrame, domains: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """A line for each row of `changed_samples`: its class, what it is taken for, its domain, how often it is right."""
    columns = (lost[name].to_list() for name in ("label", "prediction", "first", "second"))
    return [
        f"{class_names[label]} → {class_names[said]}, {domain}: right in {before:.0%} → {after:.0%} of seeds"
        for label, said, before, after, domain in zip(*columns, domains, strict=True)
    ]


def changes_from(
    first: ResultKey,
    others: Iterable[ResultKey],
    answers: Mapping[ResultKey, pd.DataFrame],
    panel: str,
    class_names: Sequence[str],
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """From one result to each of the `others` of its objective: changes of tasks, and of the classes of one panel."""
    changes = {}
    for key in others:
        if key.objective == first.objective and key != first:
            tasks = task_changes(answers[first], answers[key])
            before, after = (part[part["panel"] == panel] for part in (answers[first], answers[key]))
            changes[f"{result_name(first)} → {result_name(key)}"] = tasks, class_changes(before, after, class_names)
    return changes


def result_name(key: ResultKey) -> str:
    """The head and the noise of a result: "LP, 30 %"."""
    return f"{key.method}, {key.noise}"


def _by_result(table: pd.DataFrame, *more: str) -> Iterator[tuple[ResultKey, str, pd.DataFrame]]:
    """The rows of each result, in the order of ratios, with the panel if they are grouped by it ("panel") too."""
    named = table.assign(panel=table["protocol"] + " · " + table["task"])
    for ratio in ratios_in_order(named):
        for (objective, method, *panel), part in at_ratio(named, ratio).groupby(["objective", "method", *more]):
            yield ResultKey(str(objective), ratio_label(ratio), str(method)), "".join(map(str, panel)), part


def _accuracy(answers: pd.DataFrame, by: str) -> pd.Series:
    return answers.groupby(by)["correct"].mean()


def _changes(first: pd.DataFrame, second: pd.DataFrame, by: str) -> pd.DataFrame:
    table = pd.DataFrame({"n": first.groupby(by)["sample"].nunique()})
    table = table.assign(first=_accuracy(first, by), second=_accuracy(second, by)).rename_axis("name")
    table["change"] = table["second"] - table["first"]
    return table.reset_index().sort_values(["change", "name"], ignore_index=True)


NoiseKind = Literal["uniform", "asymmetric", "confusion"]
_NOUNS = {"supervised": "labels", "contrastive": "captions"}


def noisy_samples(
    profile: Profile, task: Task, ratio: float, *, objective: Objective, kind: NoiseKind, seed: int
) -> pd.DataFrame:
    """What each training sample of `task` is, and what the network is told: one row per sample, in the task's order.

    Columns: own, given (classes, 0..K−1), own_caption, given_caption, changed. Supervised pre-training has noisy
    labels, of the `kind`; contrastive has exchanged captions: `given` is the class of the sample whose caption it is
    and may equal `own`; `kind` plays no part. Raises UnknownNameError for another objective or kind.
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


def class_counts(own: ArrayLike, given: ArrayLike, num_classes: int) -> Int[np.ndarray, "k k"]:
    """How many samples of class i (row) were given class j (column), int64 (K, K); `own`, `given` are (N,), 0..K−1.

    Raises InvalidInputError if the two differ in length or a class is out of range.
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
    """How many of the `samples` (see `noisy_samples`) changed, and how evenly over the classes."""
    changed = samples["changed"]
    shares = changed.groupby(samples["own"]).mean()
    share, least, most = (ratio_label(round(number, 3)) for number in (changed.mean(), shares.min(), shares.max()))
    noun = _NOUNS[objective]
    finding = f"{changed.sum():,} of {len(samples):,} {noun} changed ({share}), {least} to {most} of a class"
    harmless = int((changed & (samples["own"] == samples["given"])).sum())
    return finding + (f"; {harmless:,} stay within their class" if objective == "contrastive" else "")


def described_changes(
    samples: pd.DataFrame, class_names: Sequence[str], objective: Objective, *, own_class: int | None, most: int
) -> tuple[Int[np.ndarray, " n"], list[str], str]:
    """The first rows, at most `most`, of `samples` that changed, what happened to each, and a heading.

    `samples` is that of `noisy_samples`; with `own_class` those of that class alone. A line reads own class → class
    given, or own caption → caption given.
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
