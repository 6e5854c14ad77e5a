"""The summaries that notebooks wrote, gathered as one table."""

from pathlib import Path

import pandas as pd

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.store import read_table

_PARTS = ("accuracy", "low", "high", "sve", "lsvr")
_NUMBERS = ["ratio", *(f"{protocol} {part}" for protocol in ("ID", "OOD") for part in _PARTS)]

ROW_COLUMNS = ("ratio", "method", "protocol", "task", "metric", "value", "n")


def summary_of_runs(runs: str | Path) -> pd.DataFrame:
    """Gather the summaries that notebooks wrote under `runs` (summary.parquet) as one table of readable texts.

    Columns: pre-training if there are several objectives, noise, method, then accuracy with its 95 % interval, SVE and
    LSVR, in and out of distribution.
    Raises InvalidInputError if there is none, DataFileError if one cannot be read.
    """
    paths = sorted(Path(runs).rglob("summary.parquet"))
    if not paths:
        raise InvalidInputError(f"Expected results under {runs}, found no summary.parquet: use `nml run` first.")
    table = pd.concat([_read(path) for path in paths]).drop_duplicates()
    shown = {"pre-training": table["objective"].tolist()} if table["objective"].nunique() > 1 else {}
    shown |= {"noise": table["ratio"].map(ratio_label).tolist(), "method": table["method"].tolist()}
    for protocol in ("ID", "OOD"):
        columns = zip(*(table[f"{protocol} {part}"] for part in ("accuracy", "low", "high")), strict=True)
        shown[f"{protocol} accuracy"] = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in columns]
        for metric in ("sve", "lsvr"):
            shown[f"{protocol} {metric.upper()}"] = table[f"{protocol} {metric}"].map("{:.3f}".format).tolist()
    return pd.DataFrame(shown)


def means_of_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Average result rows (ROW_COLUMNS) to a table of readable texts with the numbers that a summary has.

    Columns: noise, method, then accuracy, SVE and LSVR, in and out of distribution, as far as there are rows of them;
    each task counts the same, and within a task each test sample (accuracy) or row (SVE, LSVR).
    """
    shown = rows[rows["metric"].isin(["accuracy", "sve", "lsvr"])]
    weight = shown["n"].where(shown["metric"] == "accuracy", 1)
    keys = ["ratio", "method", "protocol", "metric"]
    tasks = shown.assign(weight=weight, value=shown["value"] * weight).groupby([*keys, "task"], dropna=False)
    sums = tasks[["value", "weight"]].sum()
    means = (sums["value"] / sums["weight"]).groupby(keys, dropna=False).mean().unstack(["protocol", "metric"])
    names = {
        (protocol, metric): f"{protocol} {metric if metric == 'accuracy' else metric.upper()}"
        for protocol in ("ID", "OOD") for metric in ("accuracy", "sve", "lsvr")
    }  # fmt: skip
    texts = {name: means[key].map("{:.3f}".format).tolist() for key, name in names.items() if key in means}
    labels = {
        "noise": [ratio_label(ratio) for ratio, _ in means.index],
        "method": [method for _, method in means.index],
    }
    return pd.DataFrame(labels | texts)


def _read(path: Path) -> pd.DataFrame:
    """One summary: a ratio in [0, 1], or none for the random baseline, an objective, a method, and numbers."""
    table = read_table(path, [*_NUMBERS, "objective", "method"])
    try:
        frame = pd.DataFrame({name: table[name].to_pylist() for name in _NUMBERS}, dtype=float)
        if not frame["ratio"].dropna().between(0, 1).all():
            raise ValueError("a ratio that is no fraction")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataFileError(f"Expected numbers in the summary {path}, got: {error}; run again.") from error
    return frame.assign(**{name: list(map(str, table[name].to_pylist())) for name in ("objective", "method")})
