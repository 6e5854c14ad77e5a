"""Suites and grids become plans: nothing runs here."""

from pathlib import Path

import pytest

from nml_kit import suites
from nml_kit.errors import DataFileError, InvalidInputError
from tests.test_batch import write_notebook


def suite_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "notebooks" / "suites" / "suite.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_suite_becomes_a_plan(tmp_path):
    path = suite_file(
        tmp_path,
        "name: study\nprofile: demo\nnotebooks:\n- notebook: ../a.ipynb\n"
        "- {notebook: ../a.ipynb, params: {rate: 0.1}, stage: 2}\n- {notebook: ../b.ipynb, stage: 2}\n"
        "- notebook: ../c.ipynb\n",
    )
    plan = suites.plan_suite(path, runs="runs")
    assert [(run.notebook.stem, run.stage) for run in plan] == [("a", 0), ("c", 0), ("a", 2), ("b", 2)]
    plan = [plan[0], *plan[2:]]
    assert [str(run.run_dir) for run in plan] == ["runs/study/a", "runs/study/a-2", "runs/study/b"]
    assert [run.params for run in plan] == [{}, {"rate": 0.1}, {}]
    assert plan[0].notebook == (tmp_path / "notebooks" / "a.ipynb").resolve()
    assert {run.profile for run in plan} == {"demo"}
    other = suites.plan_suite(path, runs="runs", profile="smoke")
    assert str(other[0].run_dir) == "runs/study-smoke/a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\nprofile: demo\nnotebooks: []\n", "notebooks: "),
        ("name: ../s\nprofile: demo\nnotebooks: [{notebook: a.ipynb}]\n", "name: "),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, parms: {}}]\n", "notebooks.0.parms: "),
        ("- 1\n", "Expected a suite"),
        ("", "Expected a suite"),
        ("name: [\n", "Expected YAML"),
        ("name: !!python/object/apply:os.system [echo]\n", "Expected YAML"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: ../../../x.ipynb}]\n", "expected notebooks under"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: /etc/x.ipynb}]\n", "expected notebooks under"),
    ],
)
def test_bad_suites_are_refused(tmp_path, text, message):
    with pytest.raises(InvalidInputError, match=message):
        suites.plan_suite(suite_file(tmp_path, text), runs="runs")


def test_a_link_cannot_lead_out_of_the_notebooks(tmp_path):
    path = suite_file(tmp_path, "name: s\nprofile: demo\nnotebooks: [{notebook: ../link.ipynb}]\n")
    (tmp_path / "notebooks" / "link.ipynb").symlink_to(tmp_path / "elsewhere.ipynb")
    with pytest.raises(InvalidInputError, match="which leaves it"):
        suites.plan_suite(path, runs="runs")


def test_a_missing_suite_is_named(tmp_path):
    with pytest.raises(DataFileError, match=r"Expected a suite file at .*none\.yaml"):
        suites.load_suite(tmp_path / "none.yaml")


def test_one_notebook_goes_to_the_directory_of_its_profile(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", parameters='profile = "demo"')
    (own,) = suites.plan_notebook(notebook, runs="runs")
    (given_one,) = suites.plan_notebook(notebook, runs="runs", profile="smoke")
    assert (str(own.run_dir), str(given_one.run_dir)) == ("runs/demo/n", "runs/smoke/n")
