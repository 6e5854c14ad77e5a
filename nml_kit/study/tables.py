"""Tables that notebooks print and draw, made from those of a study."""

import pandas as pd

from nml_kit.errors import InvalidInputError
from nml_kit.inference import accuracy_intervals
from nml_kit.study.run import Study


def spectrum_bands(spectra: pd.DataFrame, *, task: str, protocol: str, method: str) -> pd.DataFrame:
    """Mean share of each singular value over seeds (and held-out domains), with the smallest and the largest.

    Columns: ratio, index, share, low, high, cumulative_energy; all fractions. Raises InvalidInputError if `spectra`
    (see `Study.spectra`) has no such task, protocol and method.
    """
    chosen = {"task": task, "protocol": protocol, "method": method}
    part = spectra[(spectra[list(chosen)] == list(chosen.values())).all(axis=1)]
    if part.empty:
        raise InvalidInputError(f"Expected spectra of {chosen}, but there are none; choose from the study's tasks.")
    columns = {"share": ("share", "mean"), "low": ("share", "min"), "high": ("share", "max"),
               "cumulative_energy": ("cumulative_energy", "mean")}  # fmt: skip
    return part.groupby(["ratio", "index"], dropna=False).agg(**columns).reset_index()


def summary_table(study: Study) -> pd.DataFrame:
    """Ratio × method: accuracy with 95 % interval, SVE and LSVR, each a mean over the ID or the OOD tasks.

    Columns: objective, ratio, method, then "accuracy", "low", "high", "sve", "lsvr", each prefixed by "ID " or "OOD ".
    """
    groups = ["protocol", "objective", "ratio", "method"]
    accuracy = accuracy_intervals(study.samples, groups).set_index(groups)[["mean", "low", "high"]]
    per_task = study.rows.groupby([*groups, "task", "metric"], dropna=False)["value"].mean()
    spectra = per_task.groupby([*groups, "metric"], dropna=False).mean().unstack("metric")[["sve", "lsvr"]]
    table = accuracy.rename(columns={"mean": "accuracy"}).join(spectra)
    parts = [table.loc[protocol].add_prefix(f"{protocol} ") for protocol in ("ID", "OOD")]
    return parts[0].join(parts[1]).reset_index()
