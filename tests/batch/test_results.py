"""Summaries gathered as one table."""

import pandas as pd
import pytest

from nml_kit.batch import summary_of_runs
from nml_kit.errors import DataFileError, InvalidInputError


def summary_frame(accuracy: float, objective: str = "supervised") -> pd.DataFrame:
    numbers = {"accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01, "sve": 4.9, "lsvr": 2.5}
    columns = {f"{protocol} {name}": [value] for protocol in ("ID", "OOD") for name, value in numbers.items()}
    return pd.DataFrame({"objective": [objective], "ratio": [float("nan")], "method": ["LP"], **columns})


def test_summaries_are_gathered_as_text_without_repeats(tmp_path):
    for name, accuracy in [("a", 0.5), ("b", 0.5), ("c", 0.75)]:
        (tmp_path / name).mkdir()
        summary_frame(accuracy).to_parquet(tmp_path / name / "summary.parquet")
    table = summary_of_runs(tmp_path)
    assert table["noise"].tolist() == ["random init"] * 2
    assert table["ID accuracy"].tolist() == ["0.500 [0.490, 0.510]", "0.750 [0.740, 0.760]"]
    assert list(table) == [
        "noise", "method", "ID accuracy", "ID SVE", "ID LSVR", "OOD accuracy", "OOD SVE", "OOD LSVR",
    ]  # fmt: skip


def test_several_objectives_are_told_apart(tmp_path):
    for objective in ("supervised", "contrastive"):
        (tmp_path / objective).mkdir()
        summary_frame(0.5, objective).to_parquet(tmp_path / objective / "summary.parquet")
    assert summary_of_runs(tmp_path)["pre-training"].tolist() == ["contrastive", "supervised"]


def test_no_or_broken_summaries_are_errors(tmp_path):
    with pytest.raises(InvalidInputError, match=r"found no summary\.parquet: use `nml run` first"):
        summary_of_runs(tmp_path)
    (tmp_path / "summary.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataFileError, match="make it again"):
        summary_of_runs(tmp_path)
    pd.DataFrame({"foreign": [1]}).to_parquet(tmp_path / "summary.parquet")
    with pytest.raises(DataFileError, match="make it again"):
        summary_of_runs(tmp_path)
