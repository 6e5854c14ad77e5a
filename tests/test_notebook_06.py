"""The zero-shot notebook, run in the profile of seconds: its table and sentences against the samples."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest

from nml_kit import batch
from nml_kit.export import PLOTLY_MIME
from nml_kit.intervals import accuracy_intervals
from nml_kit.pretraining_study import above_chance, retrieval_samples, zero_shot_samples
from nml_kit.profiles import load_profile

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "06_zero_shot.ipynb"
pytestmark = [pytest.mark.xdist_group("notebook-06"), pytest.mark.timeout(400)]


def test_it_claims_no_more_than_the_intervals_do(tmp_path):
    status = batch.run_notebook(NOTEBOOK, profile="smoke", run_dir=tmp_path / "run")
    assert (status.exit_code, status.error) == (0, "")
    notebook = nbformat.read(tmp_path / "run" / "notebook.ipynb", as_version=4)
    data = [o.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    said = "\n".join(d["text/markdown"] for d in data if "text/markdown" in d)
    titles = [d[PLOTLY_MIME]["layout"]["title"]["text"].replace("<br>", " ") for d in data if PLOTLY_MIME in d]
    samples = zero_shot_samples(load_profile("smoke"), jobs=1, progress=False)
    margins = accuracy_intervals(above_chance(samples), ["task", "ratio"])
    for row in margins.itertuples(index=False):
        words = "above" if row.low > 0 else "below" if row.high < 0 else "not distinguishable from"
        assert f"{row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}], {words} chance" in said
    above = margins.dropna(subset="ratio").groupby("task")["low"].min() > 0
    assert f"on {above.sum()} of {len(above)} tasks" in titles[0]
    rows = pd.read_parquet(tmp_path / "run" / "rows.parquet").query("direction != 'image→class'")
    found = retrieval_samples(load_profile("smoke"), jobs=1, progress=False)
    keys = ["task", "direction", "k", "ratio"]
    expected = found.groupby(keys, dropna=False)[["correct", "chance"]].mean().reset_index()
    both = rows.merge(expected, on=keys, suffixes=("", " expected"))
    assert len(both) == len(expected)
    assert both["mean"].to_numpy() == pytest.approx(both["correct"].to_numpy())
    assert both["chance"].to_numpy() == pytest.approx(both["chance expected"].to_numpy())
