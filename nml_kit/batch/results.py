"""What runs have come to so far, as tables: their states, the accuracies in their results, the summaries they wrote."""

from collections import Counter
from datetime import datetime
from pathlib import Path

import pandas as pd

from nml_kit.batch.status import RunStatus
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.store import read_table

_PARTS = ("accuracy", "low", "high", "sve", "lsvr")
_NUMBERS = ["ratio", *(f"{protocol} {part}" for protocol in ("ID", "OOD") for part in _PARTS)]
PROGRESS_COLUMNS = ("run", "state", "seconds", "error", "result")
_CLEAN = ["fraction", "label_noise", "metric"]  # tell which rows are accuracies on whole, clean training sets
_ACCURACY_COLUMNS = ["profile", "objective", "protocol", "method", "task", "test_domain", "ratio", "seed", "value"]


def progress_table(statuses: list[RunStatus], *, now: datetime) -> pd.DataFrame:
    """One row per run in PROGRESS_COLUMNS: its name, state, seconds so far (`now` is with a time zone), error, result.

    The result is the mean ID accuracy of each method, over tasks, ratios and seeds, if the run is done and has any.
    """
    rows = [
        (status.name, status.state, status.seconds_at(now), status.short_error, key_result(status))
        for status in statuses
    ]
    return pd.DataFrame(rows, columns=list(PROGRESS_COLUMNS)).astype({"seconds": "float64"})


def progress_in_words(table: pd.DataFrame) -> str:
    """How many runs are in each state; `table` is that of `progress_table`.

    >>> progress_in_words(pd.DataFrame({"state": ["done", "failed", "done"]}))
    '3 runs: 2 done, 1 failed'
    """
    counts = Counter(table["state"])
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return f"{len(table)} run{'s' * (len(table) != 1)}: {states}" if counts else "No runs yet"


def longest_in_words(table: pd.DataFrame) -> str:
    """Which run of a `progress_table` took longest so far; empty if none has started.

    >>> longest_in_words(pd.DataFrame({"run": ["a", "b"], "seconds": [3.0, 1200.5]}))
    'longest: b, 1,200.5 s'
    """
    started = table[table["seconds"].notna()].sort_values("seconds")
    return f"longest: {started['run'].iloc[-1]}, {started['seconds'].iloc[-1]:,.1f} s" if len(started) else ""


def found_accuracies(statuses: list[RunStatus]) -> pd.DataFrame:
    """Accuracies of heads on whole, clean training sets in rows.parquet of the done runs, each once.

    Columns: profile, objective, protocol, method, task, test_domain, ratio (NaN: random network), seed, value
    (fraction). Files in other columns, or that cannot be read, are passed over.
    """
    tables = [table for status in statuses if len(table := _accuracies_of(status))]
    if not tables:
        return pd.DataFrame(columns=_ACCURACY_COLUMNS)
    return pd.concat(tables, ignore_index=True).drop_duplicates(ignore_index=True)


def accuracy_lines(accuracies: pd.DataFrame, method: str) -> pd.DataFrame:
    """Mean accuracy of a method over tasks and seeds at each ratio: line (objective · protocol), ratio, accuracy, n.

    `accuracies` are those of `found_accuracies`; n counts its rows. Lines of several profiles start with their profile.
    """
    part = accuracies[(accuracies["method"] == method) & accuracies["ratio"].notna()]
    line = part["objective"] + " · " + part["protocol"]
    if part["profile"].nunique() > 1:
        line = part["profile"] + " · " + line
    per_task = part.assign(line=line).groupby(["line", "ratio", "task"])["value"].agg(["mean", "size"])
    grouped = per_task.groupby(["line", "ratio"])
    return grouped.agg(accuracy=("mean", "mean"), n=("size", "sum")).reset_index()


def accuracy_in_words(lines: pd.DataFrame, method: str) -> str:
    """What accuracy does from the lowest to the highest ratio, by line of `accuracy_lines`.

    >>> rows = [("supervised · ID", 0.0, 0.8), ("supervised · ID", 0.3, 0.7)]
    >>> accuracy_in_words(pd.DataFrame(rows, columns=["line", "ratio", "accuracy"]), "LP")
    'Accuracy of LP from 0 % to 30 % noise: supervised · ID 0.800 → 0.700'
    """
    if lines.empty:
        return f"No accuracy of {method} found yet"
    ends = [part.sort_values("ratio")["accuracy"].iloc[[0, -1]].tolist() for _, part in lines.groupby("line")]
    changes = (f"{name} {a:.3f} → {b:.3f}" for name, (a, b) in zip(sorted(set(lines["line"])), ends, strict=True))
    span = f"{ratio_label(lines['ratio'].min())} to {ratio_label(lines['ratio'].max())}"
    return f"Accuracy of {method} from {span} noise: {', '.join(changes)}"


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
        rows = read_table(status.run_dir / "rows.parquet", [*_ACCURACY_COLUMNS, *_CLEAN]).to_pandas()
        rows = rows.astype({"ratio": float, "value": float, "fraction": float, "label_noise": float})
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
    table = pd.concat([_read_summary(path) for path in paths]).drop_duplicates()
    shown = {"pre-training": table["objective"].tolist()} if table["objective"].nunique() > 1 else {}
    shown |= {"noise": table["ratio"].map(ratio_label).tolist(), "method": table["method"].tolist()}
    for protocol in ("ID", "OOD"):
        columns = zip(*(table[f"{protocol} {part}"] for part in ("accuracy", "low", "high")), strict=True)
        shown[f"{protocol} accuracy"] = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in columns]
        for metric in ("sve", "lsvr"):
            shown[f"{protocol} {metric.upper()}"] = table[f"{protocol} {metric}"].map("{:.3f}".format).tolist()
    return pd.DataFrame(shown)


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
