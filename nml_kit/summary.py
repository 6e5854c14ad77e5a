"""The summaries that notebooks wrote, gathered as one table."""

from pathlib import Path

import pandas as pd

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.look import ratio_label

_PARTS = ("accuracy", "low", "high", "sve", "lsvr")
_COLUMNS = ["ratio", "method", *(f"{protocol} {part}" for protocol in ("ID", "OOD") for part in _PARTS)]


def summary_of_runs(runs: str | Path) -> pd.DataFrame:
    """Gather the summaries that notebooks wrote under `runs` (summary.parquet) as one table of readable texts.

    Columns: noise, method, then accuracy with its 95 % interval, SVE and LSVR, in and out of distribution.
    Raises InvalidInputError if there is none, DataFileError if one cannot be read.
    """
    paths = sorted(Path(runs).rglob("summary.parquet"))
    if not paths:
        raise InvalidInputError(f"Expected results under {runs}, found no summary.parquet: use `nml run` first.")
    try:
        table = pd.concat([pd.read_parquet(path, columns=_COLUMNS) for path in paths]).drop_duplicates()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors; of a missing column too
        raise DataFileError(f"Expected summaries in {', '.join(map(str, paths))}, got: {error}; run again.") from error
    shown = {"noise": table["ratio"].map(ratio_label).tolist(), "method": table["method"].tolist()}
    for protocol in ("ID", "OOD"):
        columns = zip(*(table[f"{protocol} {part}"] for part in ("accuracy", "low", "high")), strict=True)
        shown[f"{protocol} accuracy"] = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in columns]
        for metric in ("sve", "lsvr"):
            shown[f"{protocol} {metric.upper()}"] = table[f"{protocol} {metric}"].map("{:.3f}".format).tolist()
    return pd.DataFrame(shown)
