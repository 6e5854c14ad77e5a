"""The notebook on pre-training, run in the profile of seconds: its rows and sentences against the networks' cards."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest

from nml_kit import batch
from nml_kit.export import PLOTLY_MIME
from nml_kit.pretraining_study import pretraining_history
from nml_kit.profiles import load_profile
from nml_kit.store import Store

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "05_pretraining.ipynb"
pytestmark = [pytest.mark.xdist_group("notebook-05"), pytest.mark.timeout(400)]


def test_it_shows_what_the_cards_hold(tmp_path):
    params = {"objective": "contrastive"}
    status = batch.run_notebook(NOTEBOOK, profile="smoke", params=params, run_dir=tmp_path / "run")
    assert (status.exit_code, status.error) == (0, "")
    history = pretraining_history(load_profile("smoke"), "contrastive", store=Store(), jobs=1, progress=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "rows.parquet"), history)
    notebook = nbformat.read(tmp_path / "run" / "notebook.ipynb", as_version=4)
    data = [o.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    said = "\n".join(d["text/markdown"] for d in data if "text/markdown" in d)
    [title] = [d[PLOTLY_MIME]["layout"]["title"]["text"].replace("<br>", " ") for d in data if PLOTLY_MIME in d]
    last = history[history["epoch"] == 2].set_index("ratio")
    clean, noisy = last.loc[0.0], last.loc[0.3]
    assert f"goes from {clean.test_accuracy:.3f} to {noisy.test_accuracy:.3f}" in title
    assert f"{noisy.memorised:.3f} of the noise is memorised (contrastive)" in title
    assert f"(one seed, so no interval): at 30 % {noisy.test_accuracy - clean.test_accuracy:+.3f}." in said
    assert f"{noisy.memorised:.3f} after the last, 2" in said
