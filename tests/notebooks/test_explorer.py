"""The explorer run in batch is a page of figures: no widget in it, small; widgets asked for in a batch are refused."""

import nbformat
import pytest

from nml_kit.batch import plan_notebook, run_suite
from nml_kit.errors import InvalidInputError
from tests.one_notebook import NOTEBOOKS, run_notebook

pytestmark = pytest.mark.timeout(300)


def test_a_batch_shows_figures_that_need_no_kernel(tmp_path, smoke_home, two_tasks):
    run = run_notebook("explorer", tmp_path, smoke_home, profile="small")
    run.check_page(figures=4)
    assert (run.run_dir / "notebook.ipynb").stat().st_size < 2e6
    assert (run.run_dir / "notebook.html").stat().st_size < 8e6
    mimes = {mime for output in run.outputs for mime in output.get("data", {})}
    assert not [mime for mime in mimes if "widget" in mime]
    assert "widgets" not in nbformat.read(run.run_dir / "notebook.ipynb", as_version=4).metadata


def test_widgets_in_a_batch_are_refused(tmp_path):
    plan = plan_notebook(NOTEBOOKS / "explorer.ipynb", runs=tmp_path, params={"interactive": True})
    with pytest.raises(InvalidInputError, match="widgets need a kernel that stays"):
        run_suite(plan)
