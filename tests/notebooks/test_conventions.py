"""What all notebooks share: suites that list them, parameters that papermill reads, the method in view."""

import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from nml_kit.batch import plan_suite
from nml_kit.pages import notebook_parameters, read_source
from tests.one_notebook import NOTEBOOKS

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
NUMBERED = [name for name in NAMES if name[0].isdigit()]


def code_of(names) -> str:
    cells = [cell for name in names for cell in read_source(NOTEBOOKS / f"{name}.ipynb")["cells"]]
    return "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")


def test_the_smoke_suite_runs_every_notebook_for_both_objectives():
    plan = plan_suite(NOTEBOOKS / "suites" / "smoke.yaml", runs="runs")
    listed = {}
    for run in plan:
        listed.setdefault(Path(run.notebook).stem, []).append(run.params.get("objective"))
    assert sorted(listed) == NAMES
    for name, objectives in listed.items():
        has_choice = "objective" in notebook_parameters(read_source(NOTEBOOKS / f"{name}.ipynb"))
        assert set(objectives) == ({"supervised", "contrastive"} if has_choice else {None}), name


@pytest.mark.parametrize("name", NAMES)
def test_papermill_reads_every_parameter(name):
    known = papermill.inspect_notebook(NOTEBOOKS / f"{name}.ipynb")
    assert list(known) == list(notebook_parameters(read_source(NOTEBOOKS / f"{name}.ipynb")))
    assert all(parameter["inferred_type_name"] != "None" for parameter in known.values())


@pytest.mark.parametrize(
    "call", ["inject_label_noise(", "pretrain(", "extract_features(", "singular_values(", "nmtune_terms(", "NMTune(",
             "LinearProbe("]
)  # fmt: skip
def test_the_method_is_in_view(call):
    assert call in code_of(NUMBERED)


def test_a_notebook_runs_by_nbconvert_from_any_directory(tmp_path):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "notebook", "--output-dir", "."]
    subprocess.run([*command, NOTEBOOKS / "01_noise.ipynb"], cwd=tmp_path, capture_output=True, check=True)
    [title, _] = [
        output.data["application/vnd.plotly.v1+json"]["layout"]["title"]["text"]
        for cell in nbformat.read(tmp_path / "01_noise.ipynb", as_version=4).cells
        for output in cell.get("outputs", [])
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert title.startswith("160 of 1600 labels flipped (10 %, uniform)")
