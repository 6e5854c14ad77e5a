"""What ratios, panels and columns are called in every table and figure."""

import math

import pandas as pd

from nml_kit.errors import InvalidInputError

METHODS = ("LP", "MLP", "NMTune")
RANDOM_INIT = "random init"


def ratio_label(ratio: float) -> str:
    """Return a noise ratio (fraction) as text in percent, for legends and tables.

    >>> ratio_label(0.05), ratio_label(0.125), ratio_label(float("nan"))
    ('5 %', '12.5 %', 'random init')
    """
    return RANDOM_INIT if math.isnan(ratio) else f"{round(100 * ratio, 4):g} %"


def require_columns(frame: pd.DataFrame, columns: list[str], figure: str) -> None:
    """Raise InvalidInputError naming the missing `columns`, or an empty table, of the figure called `figure`."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InvalidInputError(
            f"{figure} expected the columns {', '.join(columns)}; missing: {', '.join(missing)} "
            f"(got: {', '.join(map(str, frame.columns)) or 'none'})."
        )
    if frame.empty:
        raise InvalidInputError(f"{figure} expected at least one row, got an empty table: check the filter before it.")


def ratios_in_order(frame: pd.DataFrame) -> list[float]:
    """Ratios in ascending order, the random baseline (NaN) last: the legend's order in every figure."""
    ratios = frame["ratio"].astype(float)
    return sorted(ratios.dropna().unique().tolist()) + ([math.nan] if ratios.isna().any() else [])


def at_ratio(frame: pd.DataFrame, ratio: float) -> pd.DataFrame:
    return frame[frame["ratio"].isna() if math.isnan(ratio) else frame["ratio"] == ratio]


def panel_names(frame: pd.DataFrame) -> list[str]:
    return list(frame["protocol"].astype(str) + " · " + frame["task"].astype(str))
