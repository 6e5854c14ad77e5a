"""Two sides compared: the answers of two results, and what training samples are and what networks are told they are.

A result is one objective, method and ratio. "First" and "second" are tables of the answers of the two, parts of
`answers_by_result`; all shares are fractions, means over seeds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.metrics import confusion_matrix

from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.inference import at_ratio, panel_names, ratio_label, ratios_in_order
from nml_kit.study.conditions import caption_noise, label_noise, pretraining_recipe
from nml_kit.study.profile import NoiseKind, Objective, Profile


class ResultKey(NamedTuple):
    """Which answers: the objective of pre-training, its noise as text (see `ratio_label`), and the head."""

    objective: str
    noise: str
    method: str

    @property
    def name(self) -> str:
        """The head and the noise: "LP, 30 %"."""
        return f"{self.method}, {self.noise}"


def answers_by_result(samples: pd.DataFrame) -> dict[ResultKey, pd.DataFrame]:
    """The answers (SAMPLE_COLUMNS and panel, such as "ID · icons") of each result, in the order of their ratios."""
    return {key: part for key, _, part in _by_result(samples)}


def answers_of(answers: Mapping[ResultKey, pd.DataFrame], key: ResultKey) -> pd.DataFrame:
    """The answers of one result; InvalidInputError, naming what there is, if it was not measured."""
    if key not in answers:
        known = sorted({", ".join(known) for known in answers})
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


def spectral_means(rows: pd.DataFrame) -> dict[tuple[ResultKey, str], pd.Series]:
    """SVE and LSVR (nats) of each result on each panel, means over seeds and held-out domains: "sve", "lsvr"."""
    spectral = rows[rows["metric"].isin(["sve", "lsvr"])]
    return {(key, panel): part.groupby("metric")["value"].mean()
            for key, panel, part in _by_result(spectral, "panel")}  # fmt: skip


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
    largest = changes["change"].abs().nlargest(count).index
    return changes.loc[largest].sort_values(["change", "name"], ignore_index=True)


def confusion_change(first: pd.DataFrame, second: pd.DataFrame, num_classes: int) -> Float[np.ndarray, "k k"]:
    """K×K: by how much the share of a class (row) that is taken for another (column) grows from first to second."""
    classes = np.arange(num_classes)
    before, after = (confusion_matrix(part["label"], part["prediction"], labels=classes, normalize="true")
                     for part in (first, second))  # fmt: skip
    return after - before


def changed_samples(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The samples of one panel that second gets right less often than first, the largest loss first.

    Columns: sample, first, second (shares of seeds that are right), label, prediction (what second says most often when
    it is wrong).
    """
    table = _changes(first, second, "sample").rename(columns={"name": "sample"})
    lost = table[table["change"] < 0].drop(columns=["n", "change"])
    wrong = second[~second["correct"]].groupby(["sample", "prediction"]).size().reset_index(name="times")
    wrong = wrong.sort_values(["times", "prediction"], ascending=[False, True]).drop_duplicates("sample")
    lost = lost.join(second.groupby("sample")["label"].first(), on="sample")
    return lost.join(wrong.set_index("sample")["prediction"], on="sample").astype({"prediction": int})


def sample_captions(lost: pd.DataFrame, domains: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """A line for each row of `changed_samples`: its class, what it is taken for, its domain, how often it is right."""
    line = "{} → {}, {}: right in {:.0%} → {:.0%} of seeds"
    own, taken_for = ([class_names[label] for label in lost[column]] for column in ("label", "prediction"))
    return list(map(line.format, own, taken_for, domains, lost["first"], lost["second"]))


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
            before, after = (part[part["panel"] == panel] for part in (answers[first], answers[key]))
            tables = task_changes(answers[first], answers[key]), class_changes(before, after, class_names)
            changes[f"{first.name} → {key.name}"] = tables
    return changes


def _by_result(table: pd.DataFrame, *more: str) -> Iterator[tuple[ResultKey, str, pd.DataFrame]]:
    """The rows of each result, in the order of ratios, with the panel if they are grouped by it ("panel") too."""
    named = table.assign(panel=panel_names(table))
    for ratio in ratios_in_order(named):
        for (objective, method, *panel), part in at_ratio(named, ratio).groupby(["objective", "method", *more]):
            yield ResultKey(str(objective), ratio_label(ratio), str(method)), "".join(map(str, panel)), part


def _changes(first: pd.DataFrame, second: pd.DataFrame, by: str) -> pd.DataFrame:
    table = pd.DataFrame({"n": first.groupby(by)["sample"].nunique()})
    table["first"], table["second"] = (part.groupby(by)["correct"].mean() for part in (first, second))
    table["change"] = table["second"] - table["first"]
    return table.rename_axis("name").reset_index().sort_values(["change", "name"], ignore_index=True)


def noisy_samples(
    profile: Profile, task: Task, ratio: float, *, objective: Objective, kind: NoiseKind, seed: int
) -> pd.DataFrame:
    """What each training sample of `task` is, and what the network is told: one row per sample, in the task's order.

    Columns: own, given (classes, 0..K−1), own_caption, given_caption, changed. Supervised pre-training has noisy
    labels, of the `kind`; contrastive has exchanged captions: `given` is the class of the sample whose caption it is
    and may equal `own`; `kind` plays no part. Raises UnknownNameError for another objective, InvalidInputError for
    another kind.
    """
    pretraining_recipe(profile, objective)  # raises for another objective
    train = task.select(split="train")
    table = pd.DataFrame({"own": train.labels, "own_caption": train.captions})
    if objective == "supervised":
        labels = label_noise(profile.changed(noise=kind), task, ratio, seed)
        return table.assign(given=labels.noisy, given_caption=train.captions, changed=labels.mask)
    texts = caption_noise(task, ratio, seed)
    return table.assign(given=train.labels[texts.source], given_caption=texts.noisy, changed=texts.mask)


def noise_finding(samples: pd.DataFrame, objective: Objective) -> str:
    """How many of the `samples` (see `noisy_samples`) changed, and how evenly over the classes."""
    changed, of_class = samples["changed"], samples["changed"].groupby(samples["own"]).mean()
    share, least, most = (ratio_label(round(number, 3)) for number in (changed.mean(), of_class.min(), of_class.max()))
    noun = "captions" if objective == "contrastive" else "labels"
    finding = f"{changed.sum():,} of {len(samples):,} {noun} changed ({share}), {least} to {most} of a class"
    harmless = (changed & (samples["own"] == samples["given"])).sum()
    return finding + (f"; {harmless:,} stay within their class" if objective == "contrastive" else "")


def described_changes(
    samples: pd.DataFrame, class_names: Sequence[str], objective: Objective, *, own_class: int | None, most: int
) -> tuple[Int[np.ndarray, " n"], list[str], str]:
    """The first rows, at most `most`, of `samples` that changed, what happened to each, and a heading.

    `samples` is that of `noisy_samples`; with `own_class` those of that class alone. A line reads own class → class
    given, or own caption → caption given.
    """
    wanted = samples["changed"] & (True if own_class is None else samples["own"] == own_class)
    rows = np.flatnonzero(wanted)[:most]
    noun = "class" if objective == "supervised" else "caption"
    whose = "" if own_class is None else f" of class {class_names[own_class]}"
    heading = f"{len(rows)} of {wanted.sum():,} changed training samples{whose}, own {noun} → {noun} given:"
    shown = samples.iloc[rows]
    if objective == "supervised":
        pairs = [[class_names[label] for label in shown[column]] for column in ("own", "given")]
    else:
        pairs = [[f"“{text}”" for text in shown[column]] for column in ("own_caption", "given_caption")]
    return rows, [f"{own} → {given}" for own, given in zip(*pairs, strict=True)], heading
