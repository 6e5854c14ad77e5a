"""Result rows and sample scores gathered from the directories of many runs, or of reference results."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.store import read_table
from nml_kit.study.evaluate import RESULT_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_COLUMNS = ("profile", "objective", "task", "protocol", "method", "fraction", "label_noise", "ratio", "seed",
                  "sample", "label", "prediction", "correct")  # fmt: skip
_NUMBERS = {"ratio": "float64", "seed": "int64", "fraction": "float64", "label_noise": "float64", "value": "float64",
            "n": "int64", "label": "int64", "prediction": "int64"}  # fmt: skip
_TYPES = {**_NUMBERS, "correct": "bool"}
_SAME_STUDY = [column for column in RESULT_COLUMNS if column not in ("experiment", "version")]


def read_run_tables(results: str | Path, *, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gather the rows (RESULT_COLUMNS) and samples (SAMPLE_COLUMNS) of a profile found anywhere under `results`.

    What several notebooks wrote of one study is there once; two results that differ stay two, for the reader to refuse.
    Files rows.parquet in other columns, and all other files, are passed over. The order does not depend on the files'.
    Raises InvalidInputError if there are no rows or no samples of the profile, DataFileError if a file cannot be read.
    """
    rows = _gathered(Path(results), "rows.parquet", RESULT_COLUMNS, profile, _SAME_STUDY)
    return rows, _gathered(Path(results), "samples.parquet", SAMPLE_COLUMNS, profile, list(SAMPLE_COLUMNS))


def _gathered(results: Path, file_name: str, columns: tuple[str, ...], profile: str, same: list[str]) -> pd.DataFrame:
    tables = [_read(path, columns) for path in sorted(results.rglob(file_name))]
    found = [table[table["profile"] == profile] for table in tables if table is not None]
    if not any(map(len, found)):
        profiles = sorted({name for table in tables if table is not None for name in table["profile"].unique()})
        raise InvalidInputError(
            f"Expected results of profile {profile!r} in files {file_name} under {results}, found "
            f"{', '.join(profiles) or 'none of any profile'}: name the directory of runs or of reference results."
        )
    gathered = pd.concat(found).drop_duplicates(same)
    return gathered.sort_values(same, ignore_index=True, kind="stable")


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    """The table's `columns`, texts but for numbers; None if it has others, as a notebook on another subject may."""
    table = read_table(path, [])
    if not set(columns) <= set(table.column_names):
        return None
    return _typed(path, read_table(path, columns), columns)


def _typed(path: Path, table: "pa.Table", columns: tuple[str, ...]) -> pd.DataFrame:
    import pyarrow as pa  # late, to stay light

    schema = pa.schema([(name, pa.type_for_alias(_TYPES.get(name, "string"))) for name in columns])
    try:
        frame = table.select(list(columns)).cast(schema).to_pandas()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataFileError(f"Expected results in {path}, got: {error}; run again.") from error
    if frame.drop(columns="ratio").isna().any(axis=None) and "sample" in columns:
        raise DataFileError(f"Expected no empty cells in {path}, but there are some; run again.")
    return frame
