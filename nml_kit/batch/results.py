"""What runs have come to so far, as tables: their states, the accuracies in their results, the summaries they wrote."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd

from nml_kit.batch.status import RunStatus
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.store import read_table

_PARTS = ("accuracy", "low", "high", "sve", "lsvr")
_NUMBERS = ["ratio", *(f"{protocol} {part}" for protocol in ("ID", "OOD") for part in _PARTS)]
_CLEAN = ["fraction", "label_noise", "metric"]  # tell which rows are accuracies on whole, clean training sets
_ACCURACY_COLUMNS = ["profile", "objective", "protocol", "method", "task", "test_domain", "ratio", "seed", "value"]


def progress_table(statuses: Sequence[RunStatus], *, now: datetime) -> pd.DataFrame:
    """One row per run: its name (run), state, seconds so far (`now` is with a time zone), error, result.

    The result is the mean ID accuracy of each method, over tasks, ratios and seeds, if the run is done and has any.
    """
    columns = {
        "run": [status.name for status in statuses],
        "state": [status.state for status in statuses],
        "seconds": pd.array([status.seconds_at(now) for status in statuses], dtype="float64"),
        "error": [status.short_error for status in statuses],
        "result": [key_result(status) for status in statuses],
    }
    return pd.DataFrame(columns)


def progress_in_words(table: pd.DataFrame) -> str:
    """How many runs are in each state; `table` is that of `progress_table`.

    >>> progress_in_words(pd.DataFrame({"state": ["done", "failed", "done"]}))
    '3 runs: 2 done, 1 failed'
    """
    states = ", ".join(f"{count} {state}" for state, count in Counter(table["state"]).most_common())
    return f"{len(table)} run{'s' * (len(table) != 1)}: {states}" if states else "No runs yet"


def longest_in_words(table: pd.DataFrame) -> str:
    """Which run of a `progress_table` took longest so far; empty if none has started.

    >>> longest_in_words(pd.DataFrame({"run": ["a", "b"], "seconds": [3.0, 1200.5]}))
    'longest: b, 1,200.5 s'
    """
    longest = table.nlargest(1, "seconds").dropna(subset="seconds")
    return "".join(f"longest: {run}, {seconds:,.1f} s" for run, seconds in longest[["run", "seconds"]].to_numpy())


def result_accuracies(statuses: Sequence[RunStatus]) -> pd.DataFrame:
    """Accuracies of heads on whole, clean training sets in rows.parquet of the done runs, each once.

    Columns: profile, objective, protocol, method, task, test_domain, ratio (NaN: random network), seed, value
    (fraction). Files in other columns, or that cannot be read, are passed over.
    """
    tables = [table for status in statuses if len(table := _accuracies_of(status))]
    none = pd.DataFrame(columns=_ACCURACY_COLUMNS)
    return pd.concat(tables or [none], ignore_index=True).drop_duplicates(ignore_index=True)


def accuracy_lines(accuracies: pd.DataFrame, method: str) -> pd.DataFrame:
    """Mean accuracy of a method over tasks and seeds at each ratio: line (objective · protocol), ratio, accuracy, n.

    `accuracies` come from `result_accuracies`; n counts its rows. Lines of several profiles start with their profile.
    """
    part = accuracies[(accuracies["method"] == method) & accuracies["ratio"].notna()]
    names = ["profile", "objective", "protocol"][part["profile"].nunique() < 2 :]
    line = part[names].agg(" · ".join, axis="columns") if len(part) else ""
    per_task = part.assign(line=line).groupby(["line", "ratio", "task"])["value"].agg(["mean", "size"])
    return per_task.groupby(["line", "ratio"]).agg(accuracy=("mean", "mean"), n=("size", "sum")).reset_index()


def accuracy_in_words(lines: pd.DataFrame, method: str) -> str:
    """What accuracy does from the lowest to the highest ratio, by line of `accuracy_lines`.

    >>> rows = [("supervised · ID", 0.0, 0.8), ("supervised · ID", 0.3, 0.7)]
    >>> accuracy_in_words(pd.DataFrame(rows, columns=["line", "ratio", "accuracy"]), "LP")
    'Accuracy of LP from 0 % to 30 % noise: supervised · ID 0.800 → 0.700'
    """
    if lines.empty:
        return f"No accuracy of {method} found yet"
    ends = lines.sort_values("ratio").groupby("line")["accuracy"].agg(["first", "last"])
    changes = ", ".join(f"{name} {first:.3f} → {last:.3f}" for name, first, last in ends.itertuples())
    low, high = lines["ratio"].min(), lines["ratio"].max()
    return f"Accuracy of {method} from {ratio_label(low)} to {ratio_label(high)} noise: {changes}"


def key_result(status: RunStatus) -> str:
    """The mean ID accuracy of each method, over tasks, ratios and seeds, if the run is done and has any."""
    rows = _accuracies_of(status)
    means = rows[(rows["protocol"] == "ID") & rows["ratio"].notna()].groupby("method")["value"].mean()
    return "ID accuracy " + ", ".join(f"{method} {mean:.3f}" for method, mean in means.items()) if len(means) else ""


def _accuracies_of(status: RunStatus) -> pd.DataFrame:
    none = pd.DataFrame(columns=_ACCURACY_COLUMNS)
    if status.state not in ("done", "hit"):
        return none
    try:
        numbers = dict.fromkeys(["ratio", "value", "fraction", "label_noise"], float)
        rows = read_table(status.run_dir / "rows.parquet", [*_ACCURACY_COLUMNS, *_CLEAN]).to_pandas().astype(numbers)
    except (DataFileError, ValueError, TypeError):  # foreign, or just being replaced
        return none
    clean = (rows["fraction"] == 1) & (rows["label_noise"] == 0) & (rows["metric"] == "accuracy")
    return rows.loc[clean, _ACCURACY_COLUMNS]


def summary_of_runs(runs: str | Path) -> pd.DataFrame:
    """Gather the summaries that notebooks wrote under `runs` (summary.parquet) as one table of readable texts.

    Columns: pre-training if there are several objectives, noise, method, then accuracy with its 95 % interval, SVE and
    LSVR, in and out of distribution.
    Raises InvalidInputError if there is none, DataFileError if one cannot be read.
    """
    paths = sorted(Path(runs).rglob("summary.parquet"))
    if not paths:
        raise InvalidInputError(f"Expected results under {runs}, found no summary.parquet: use `nml run` first.")
    table = pd.concat(map(_read_summary, paths), ignore_index=True).drop_duplicates()
    shown = {"noise": table["ratio"].map(ratio_label), "method": table["method"]}
    if table["objective"].nunique() > 1:
        shown = {"pre-training": table["objective"], **shown}
    for protocol in ("ID", "OOD"):
        mean, low, high, sve, lsvr = (table[f"{protocol} {part}"].map("{:.3f}".format) for part in _PARTS)
        shown[f"{protocol} accuracy"] = mean + " [" + low + ", " + high + "]"
        shown |= {f"{protocol} SVE": sve, f"{protocol} LSVR": lsvr}
    return pd.DataFrame(shown).reset_index(drop=True)


def _read_summary(path: Path) -> pd.DataFrame:
    """One summary: a ratio in [0, 1], or none for the random baseline, an objective, a method, and numbers."""
    table = read_table(path, [*_NUMBERS, "objective", "method"])
    try:
        frame = pd.DataFrame({name: table[name].to_pylist() for name in _NUMBERS}, dtype=float)
        if not frame["ratio"].dropna().between(0, 1).all():
            raise ValueError("a ratio that is no fraction")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataFileError(f"Expected numbers in the summary {path}, got: {error}; run again.") from error
    return frame.assign(**{name: list(map(str, table[name].to_pylist())) for name in ("objective", "method")})
