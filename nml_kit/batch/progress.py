"""How far runs are: their states, times and errors as a table, and the accuracies found so far."""

from collections import Counter
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import pandas as pd

from nml_kit.batch.status import RunStatus, read_statuses
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.store import read_table
from nml_kit.study import RESULT_COLUMNS

PROGRESS_COLUMNS = ("run", "state", "seconds", "error", "result")
_FOUND = ["profile", "objective", "protocol", "method", "task", "test_domain", "ratio", "seed", "value"]
_ERROR_LENGTH = 200


def run_statuses(runs: str | Path) -> list[RunStatus]:
    """The runs under a directory in the plan's order (see `read_statuses`), none if none is planned yet.

    Raises InvalidInputError if there is no such directory.
    """
    if not Path(runs).is_dir():
        raise InvalidInputError(f"Expected a directory of runs, but there is none at {runs}; check the path.")
    try:
        return read_statuses(runs)
    except InvalidInputError:
        return []


def progress_table(statuses: list[RunStatus], *, now: datetime) -> pd.DataFrame:
    """One row per run in PROGRESS_COLUMNS: its name, state, seconds so far (`now` is with a time zone), error, result.

    The result is the mean ID accuracy of each method, over tasks, ratios and seeds, if the run is done and has any.
    """
    rows = [
        (one.name, one.state, _seconds(one, now), " ".join(one.error.split())[:_ERROR_LENGTH], _key_result(one))
        for one in statuses
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
    tables = [rows for one in statuses if (rows := _accuracies_of(one)) is not None and len(rows)]
    if not tables:
        return pd.DataFrame(columns=_FOUND)
    return pd.concat(tables, ignore_index=True).drop_duplicates(_FOUND, ignore_index=True)


def accuracy_lines(found: pd.DataFrame, method: str) -> pd.DataFrame:
    """Mean accuracy of a method over tasks and seeds at each ratio: line (objective · protocol), ratio, accuracy, n.

    `found` is that of `found_accuracies`; n counts its rows. Lines of several profiles start with their profile.
    """
    part = found[(found["method"] == method) & found["ratio"].notna()]
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


def _seconds(status: RunStatus, now: datetime) -> float | None:
    if status.state != "running":
        return status.seconds
    try:
        started = datetime.fromisoformat(status.started)
    except ValueError:
        return None
    return max(0.0, (now - (started if started.tzinfo else started.replace(tzinfo=UTC))).total_seconds())


def _key_result(status: RunStatus) -> str:
    rows = _accuracies_of(status)
    if rows is None:
        return ""
    means = rows[(rows["protocol"] == "ID") & rows["ratio"].notna()].groupby("method")["value"].mean()
    return "ID accuracy " + ", ".join(f"{method} {mean:.3f}" for method, mean in means.items()) if len(means) else ""


def _accuracies_of(status: RunStatus) -> pd.DataFrame | None:
    path = status.run_dir / "rows.parquet"
    try:
        return _read_accuracies(path, path.stat().st_mtime_ns) if status.state in ("done", "hit") else None
    except (OSError, DataFileError):  # another run may just be replacing it
        return None


@lru_cache(maxsize=512)
def _read_accuracies(path: Path, _: int) -> pd.DataFrame | None:
    """The rows of one file, read again only when it has changed."""
    table = read_table(path, [])
    if not set(RESULT_COLUMNS) <= set(table.column_names):
        return None
    rows = table.to_pandas()
    whole = (rows["fraction"] == 1) & (rows["label_noise"] == 0) & (rows["metric"] == "accuracy")
    return rows.loc[whole, _FOUND]
