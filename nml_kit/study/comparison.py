"""Two results side by side: what they say of each task, class and sample. A result is one objective, method and ratio.

"First" and "second" are tables of the answers of the two, parts of `answers_by_result`; all shares are fractions, means
over seeds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from nml_kit.errors import InvalidInputError
from nml_kit.inference import at_ratio, ratio_label, ratios_in_order


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
    found = {}
    for key, panel, part in _by_result(spectra, "panel"):
        shares = part.groupby("index")["share"].agg(["mean", "size"])
        found[key, panel] = shares.loc[shares["size"] == shares["size"].max(), "mean"]
    return found


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
    """How many rows of a table of changes lose, the mean change, and the largest loss.

    >>> changes_in_words(pd.DataFrame({"name": ["a", "b"], "change": [-0.2, 0.1]}), "tasks")
    '1 of 2 tasks lose accuracy, mean change -0.050; most: a -0.200'
    """
    lost, worst = int((changes["change"] < 0).sum()), changes.iloc[int(changes["change"].argmin())]
    words = f"{lost} of {len(changes)} {of} lose accuracy, mean change {changes['change'].mean():+.3f}"
    return f"{words}; most: {worst['name']} {worst['change']:+.3f}" if lost else words


def largest_changes(changes: pd.DataFrame, count: int) -> pd.DataFrame:
    """The `count` rows that change most, either way, the largest loss first."""
    largest = changes["change"].abs().sort_values(ascending=False, kind="stable").index[:count]
    return changes.loc[largest].sort_values(["change", "name"], ignore_index=True)


def confusion_change(first: pd.DataFrame, second: pd.DataFrame, num_classes: int) -> NDArray[np.float64]:
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
    lost = table[table["second"] < table["first"]].rename_axis("sample").reset_index()
    lost["loss"] = lost["first"] - lost["second"]
    lost = lost.sort_values(["loss", "sample"], ascending=[False, True], ignore_index=True).drop(columns="loss")
    return lost.astype({"prediction": int})


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
    found = {}
    for key in others:
        if key.objective == first.objective and key != first:
            tasks = task_changes(answers[first], answers[key])
            before, after = (part[part["panel"] == panel] for part in (answers[first], answers[key]))
            found[f"{result_name(first)} → {result_name(key)}"] = tasks, class_changes(before, after, class_names)
    return found


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
