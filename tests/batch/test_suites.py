"""Suites and grids become plans: nothing runs here."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nml_kit.batch import RunStatus, plan_notebook, plan_suite, suites
from nml_kit.errors import DataFileError, InvalidInputError
from tests.batch.test_run import write_notebook


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
    plan = plan_suite(path, runs="runs")
    assert [(run.notebook.stem, run.stage) for run in plan] == [("a", 0), ("c", 0), ("a", 2), ("b", 2)]
    plan = [plan[0], *plan[2:]]
    assert [str(run.run_dir) for run in plan] == ["runs/study/a", "runs/study/a-2", "runs/study/b"]
    assert [run.params.get("rate") for run in plan] == [None, 0.1, None]
    assert plan[0].notebook == (tmp_path / "notebooks" / "a.ipynb").resolve()
    assert {run.params["profile"] for run in plan} == {"demo"}
    other = plan_suite(path, runs="runs", profile="smoke")
    assert str(other[0].run_dir) == "runs/study-smoke/a"


def test_a_notebook_may_have_a_profile_of_its_own_unless_one_is_asked_for(tmp_path):
    entries = "- notebook: ../a.ipynb\n- {notebook: ../b.ipynb, profile: mine.yaml}\n"
    path = suite_file(tmp_path, f"name: s\nprofile: small\nnotebooks:\n{entries}")
    a, b = plan_suite(path, runs="runs")
    assert (a.params["profile"], b.params["profile"]) == ("small", str((path.parent / "mine.yaml").resolve()))
    assert a.run_dir.parent == b.run_dir.parent == Path("runs/s")
    assert {run.params["profile"] for run in plan_suite(path, runs="runs", profile="smoke")} == {"smoke"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\nprofile: demo\nnotebooks: []\n", "notebooks: "),
        ("name: ../s\nprofile: demo\nnotebooks: [{notebook: a.ipynb}]\n", "name: "),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, parms: {}}]\n", "notebooks.0.parms: .*'params'"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, gird: {}}]\n", "did you mean 'grid'"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, resources: {memory: much}}]\n", "resources.memory"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, resources: {GPU: -1}}]\n", "resources.GPU"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, params: {profile: x}}]\n", "`profile` beside `noteb"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, params: {run_dir: x}}]\n", "no parameter 'run_dir'"),
        ("- 1\n", "Expected a suite"),
        ("", "Expected a suite"),
        ("name: [\n", "Expected YAML"),
        ("name: !!python/object/apply:os.system [echo]\n", "Expected YAML"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: ../../../x.ipynb}]\n", "expected files under"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: /etc/x.ipynb}]\n", "expected files under"),
        ("name: s\nprofile: demo\nnotebooks: [{notebook: a.ipynb, profile: ../../x.yaml}]\n", "expected files under"),
    ],
)
def test_bad_suites_are_refused(tmp_path, text, message):
    with pytest.raises(InvalidInputError, match=message):
        plan_suite(suite_file(tmp_path, text), runs="runs")


def test_a_link_cannot_lead_out_of_the_notebooks(tmp_path):
    path = suite_file(tmp_path, "name: s\nprofile: demo\nnotebooks: [{notebook: ../link.ipynb}]\n")
    (tmp_path / "notebooks" / "link.ipynb").symlink_to(tmp_path / "elsewhere.ipynb")
    with pytest.raises(InvalidInputError, match="which leaves it"):
        plan_suite(path, runs="runs")


def test_a_missing_suite_is_named(tmp_path):
    with pytest.raises(DataFileError, match=r"Expected a YAML file at .*none\.yaml"):
        plan_suite(tmp_path / "none.yaml", runs="runs")


def test_one_notebook_goes_to_the_directory_of_its_profile(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", parameters='profile = "demo"')
    (own,) = plan_notebook(notebook, runs="runs")
    (given_one,) = plan_notebook(notebook, runs="runs", profile="smoke")
    assert (str(own.run_dir), str(given_one.run_dir)) == ("runs/demo/n", "runs/smoke/n")


def test_a_grid_is_a_product_in_the_order_of_the_file(tmp_path):
    path = suite_file(
        tmp_path,
        "name: study\nprofile: demo\nnotebooks:\n- notebook: ../a.ipynb\n  params: {task: icons}\n"
        "  grid: {rate: [0.1, 0.3], seed: [0, 1]}\n  stage: 1\n  resources: {CPU: 2, memory: 2GB}\n",
    )
    plan = plan_suite(path, runs="runs")
    names = ["a/rate=0.1,seed=0", "a/rate=0.1,seed=1", "a/rate=0.3,seed=0", "a/rate=0.3,seed=1"]
    assert [run.name for run in plan] == names
    assert [str(run.run_dir) for run in plan] == [f"runs/study/{name}" for name in names]
    assert plan[1].params == {"profile": "demo", "task": "icons", "rate": 0.1, "seed": 1}
    assert {(run.stage, run.plan_dir, run.source) for run in plan} == {(1, Path("runs/study"), path.resolve())}
    assert plan[0].resources == {"CPU": 2, "GPU": 0, "memory": "2GB"}


def test_the_grid_of_a_suite_holds_for_each_notebook_that_has_the_parameter(tmp_path):
    write_notebook(tmp_path / "notebooks" / "a.ipynb", parameters='objective = "x"')
    write_notebook(tmp_path / "notebooks" / "b.ipynb", parameters="rate = 0.1")
    path = suite_file(
        tmp_path,
        "name: s\nprofile: demo\ngrid: {objective: [x, y]}\nnotebooks:\n- notebook: ../a.ipynb\n"
        "- notebook: ../b.ipynb\n- {notebook: ../a.ipynb, grid: {objective: [z]}}\n"
        "- {notebook: ../a.ipynb, params: {objective: w}}\n",
    )
    chosen = [(run.name, run.params.get("objective")) for run in plan_suite(path, runs="runs")]
    assert chosen == [
        ("a/objective=x", "x"),
        ("a/objective=y", "y"),
        ("b", None),
        ("a-2/objective=z", "z"),
        ("a-3", "w"),
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"rate": [0.1, 0.1]}, "'rate' lists 0.1 twice"),
        ({"rate": [1, 1.0]}, "'rate' lists 1.0 twice"),
        ({"rate": []}, "'rate' needs at least one value"),
        ({"task": ["icons"]}, "'task' is among the params too"),
        ({"run_dir": ["a"]}, "'run_dir' is set for each run by nml"),
    ],
)
def test_bad_grids_are_refused(tmp_path, grid, message):
    notebook = write_notebook(tmp_path / "n.ipynb")
    with pytest.raises(InvalidInputError, match=message):
        plan_notebook(notebook, runs="runs", params={"task": "emoji"}, grid=grid)


words = st.text(min_size=1, max_size=300) | st.sampled_from(["..", "../..", "a/b", "a,b=c", "A", "a", ".", "/etc"])


@settings(max_examples=30, deadline=None)
@given(grid=st.dictionaries(words, st.lists(words, min_size=1, max_size=4, unique=True), min_size=1, max_size=2))
def test_points_have_directories_of_their_own_inside_the_runs(grid):
    base = RunStatus(name="n", notebook=Path("n.ipynb"), run_dir=Path("runs/demo/n"), state="waiting")
    points = suites._grid_points(base, {f"k{key}": values for key, values in grid.items()})
    names = [point.run_dir.name for point in points]
    assert len({name.casefold() for name in names}) == len(points)
    assert all(point.run_dir.parent == base.run_dir for point in points)
    assert all(len(name.encode()) < 200 and name not in (".", "..") and "/" not in name for name in names)


def test_notebooks_of_one_name_get_directories_of_their_own(tmp_path):
    files = ["../a.ipynb", "../x/A.ipynb", "../a.ipynb", "../a-2.ipynb"]
    entries = [{"notebook": file} for file in files]
    path = suite_file(tmp_path, json.dumps({"name": "s", "profile": "demo", "notebooks": entries}))
    names = [run.name for run in plan_suite(path, runs="runs")]
    assert names == ["a", "A-2", "a-3", "a-2-2"]
