"""The repository keeps its own promises: rooms, light import, one list of dependencies, stripped notebooks."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from nml_kit.store import read_yaml

ROOT = Path(__file__).parents[1]
# The rooms of the house, from the first to the last: a file imports from its own room and from those before it.
ROOMS = [
    "store",
    "noise",
    "data",
    "backbones",
    "pretraining",
    "features",
    "spectrum",
    "heads",
    "tuning",
    "inference",
    "study",
    "audit",
    "plots",
    "pages",
    "batch",
    "widgets",
    "cli",
]
# These know arrays alone, so that anyone can take them out of here.
ARRAYS_ONLY = ("noise", "spectrum")
CONDA_NAMES = {"torch": "pytorch", "open_clip_torch": "open-clip-torch", "playwright": "playwright-python",
               "kaleido": "python-kaleido", "duckdb": "python-duckdb"}  # fmt: skip


def imports(path: Path) -> set[tuple[str, ...]]:
    """The parts of every `nml_kit.room.file` that the file imports, also inside functions; ("errors",) for errors."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nml_kit"):
            inside = tuple(node.module.split(".")[1:])
            names = [(alias.name,) for alias in node.names if len(inside) < 2 and alias.name != "__version__"]
            modules |= {(*inside, *name) for name in names} or {inside}
        elif isinstance(node, ast.Import):
            modules |= {tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("nml_kit.")}
    return modules - {()}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it_and_goes_in_no_circle(room):
    before = {*ROOMS[: ROOMS.index(room)], "errors"} if room not in ARRAYS_ONLY else {"errors", *ARRAYS_ONLY}
    inside = {}
    for path in sorted((ROOT / "nml_kit" / room).glob("*.py")):
        imported = imports(path)
        assert {parts[0] for parts in imported} <= before | {room}, path
        inside[path.stem] = {parts[1] for parts in imported if parts[0] == room and len(parts) > 1}
    tuple(TopologicalSorter(inside).static_order())  # a CycleError names the circle


def test_every_folder_is_a_room_with_a_place_in_the_order():
    folders = {path.parent.name for path in (ROOT / "nml_kit").glob("*/*.py")}
    assert folders == set(ROOMS)
    assert {path.name for path in (ROOT / "nml_kit").glob("*.py")} == {"__init__.py", "errors.py"}


@pytest.mark.parametrize("folder", ["nml_kit", "notebooks", "benchmarks", "data"])
def test_rooms_are_entered_by_their_doors(folder):
    """What a room exports is in its `__init__.pyi`; nobody else imports from its files."""
    for path in sorted((ROOT / folder).rglob("*.py")) + sorted((ROOT / folder).rglob("*.ipynb")):
        own = path.relative_to(ROOT / "nml_kit").parts[0] if folder == "nml_kit" else ""
        into_files = re.findall(r"(?:from|import) nml_kit\.(\w+)\.\w+", path.read_text(encoding="utf-8"))
        assert set(into_files) <= {own}, path


def test_files_and_functions_stay_small():
    """A file over 300 lines is two files, a function over 45 is two functions, a folder with more files two rooms."""
    paths = sorted((ROOT / "nml_kit").rglob("*.py"))
    beside_doors = [path for path in paths if path.name != "__init__.py"]
    assert len(beside_doors) <= 100
    assert max(Counter(path.parent for path in beside_doors).values()) <= 9
    assert not [path for path in beside_doors if path.name.startswith("_")]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path}: {node.name}"


def test_import_is_light_and_every_public_name_resolves():
    code = (
        "import sys, nml_kit; heavy = {'torch', 'sklearn', 'pandas', 'plotly', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "print([getattr(nml_kit, name).__name__ for name in nml_kit.__all__ if name[0] != '_'])"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "inject_label_noise" in listed
    assert "NMTune" in listed


def declared_dependencies() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    parsed = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)(>=[\w.]+)", requirement)
        assert match, f"{requirement}: a lower bound, nothing else"
        parsed[CONDA_NAMES.get(match[1], match[1])] = match[2]
    return parsed


def test_conda_environment_declares_the_same_packages_and_bounds():
    listed = read_yaml(ROOT / "environment.yml")["dependencies"]
    *by_conda, by_pip = listed
    *only_pip, package = by_pip["pip"]
    bounded = [*filter(lambda item: ">=" in item, by_conda), *only_pip]
    packages = dict(re.fullmatch(r"([\w.-]+)(>=[\w.]+)", item).groups() for item in bounded)
    assert packages.pop("python") == ">=3.11"
    assert packages == declared_dependencies()
    assert package == "-e ."


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_follow_the_conventions(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown"
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    for cell in code:
        source = "".join(cell["source"])
        statements = source.rpartition("\nfrom nml_kit")[2] if "\nfrom nml_kit" in source else source
        assert len(statements.splitlines()) <= 15, source
        assert "open(" not in source, source  # a short function or class may be the idea; files are the package's


def test_the_examples_of_the_readme_run_as_they_are(tmp_path, two_tasks):
    explorer, example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 1000)
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "features.npy", generator.standard_normal((1000, 16)) + 4 * np.eye(16)[labels])
    subprocess.run([sys.executable, "-c", explorer], cwd=tmp_path, capture_output=True, check=True)
    example = example.replace("8000", "800")  # as large as the reader's is nothing to wait for here
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    spectrum, *scores = run.stdout.splitlines()
    assert re.fullmatch(r"SVE \d\.\d{3}, LSVR \d\.\d{3}", spectrum)
    assert [score.split()[0] for score in scores] == ["LinearProbe", "NMTune"]
    assert all(float(score.split()[1]) > 0.95 for score in scores)


def test_ci_and_readme_use_the_same_test_command():
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").split("\n")
    assert "make test" in commands
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
