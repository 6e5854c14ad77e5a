"""The repository keeps its own promises: layers, light import, one list of dependencies, stripped notebooks."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
# A module may import only modules of an earlier line.
LAYERS = (
    "_version errors _kernel_output _kernel_parent",
    "files _tar _yaml _fingerprint _noise_draws _workspace _feature_rows intervals _claim_tests",
    "best_ratio noise",
    "class_similarity _image_files",
    "store _head_inputs regularizers _head_layers _gram _qr _logistic_newton",
    "_accumulator _logistic_path _digests",
    "_subset_spectra",
    "spectrum spectrum_families",
    "records tasks networks _head_optimizer recipes _batch_statistics",
    "data_arrays",
    "data_tables data_folders joined_tasks _head_training _clip large_recipes",
    "data_shards data_hub data_imagenet data_torchvision",
    "_caption_plan",
    "caption_shards",
    "dataset_names",
    "datasets _head_fitting",
    "heads exact_probe",
    "transforms",
    "_backbone",
    "_vision_backbones _hub_backbones",
    "packaged _file_backbones embedding_api",
    "backbones",
    "_processes",
    "_sgd _pretraining _parallel frozen _large_images",
    "contrastive _timm_training _shard_streams",
    "pretrain features shard_pretraining",
    "folds profiles _lora",
    "evaluate",
    "selection tuning",
    "origins look",
    "extraction noise_tables plots_playground plots_progress",
    "study",
    "_claim_cells",
    "run_tables reference directions",
    "_claim_parts",
    "_claim_results",
    "claims",
    "zero_shot",
    "pretraining_study plots_pretraining",
    "tables",
    "plots",
    "spectra_tables plots_noise",
    "results plots_spectra plots_study",
    "explorer_tables playground",
    "plots_explorer comparison",
    "plots_comparison",
    "explorer_views",
    "variants feature_files head_files plots_audit",
    "repairs ablation runtime audit head_fusion",
    "tuning_study",
    "plots_evaluation practical",
    "plots_claims",
    "_page_tables parameters _figure_width",
    "export _kernels summary",
    "images",
    "suites status",
    "_execution _estimates run_progress",
    "_run",
    "_executors",
    "batch _cluster doctor report",
    "_deployment",
    "_console",
    "_cli_options",
    "_cli_data",
    "cli",
    "_figure_view",
    "_explorer",
    "widget_spectra widget_comparison widget_noise widget_playground widget_monitor",
    "widgets",
)
ARRAYS_ONLY = ("noise", "_noise_draws", "spectrum", "_subset_spectra", "_accumulator", "_gram", "_qr", "_feature_rows",
               "regularizers", "_workspace")  # fmt: skip
CONDA_NAMES = {"torch": "pytorch", "open_clip_torch": "open-clip-torch", "playwright": "playwright-python",
               "kaleido": "python-kaleido", "duckdb": "python-duckdb"}  # fmt: skip


def imported_modules(path: Path) -> set[str]:
    """Names of the nml_kit modules that the file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nml_kit"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("nml_kit.")}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "nml_kit").glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_modules_above_it(path):
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
    if path.stem == "__init__":
        assert imported_modules(path) == set()
        return
    assert path.stem in layer_of, f"add {path.stem} to the layers"
    above = {name for name, number in layer_of.items() if number < layer_of[path.stem]}
    assert imported_modules(path) <= above


@pytest.mark.parametrize("name", ARRAYS_ONLY)
def test_array_modules_import_nothing_but_errors_and_each_other(name):
    assert imported_modules(ROOT / "nml_kit" / f"{name}.py") <= {"errors", *ARRAYS_ONLY}


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
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
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
        assert len(source.splitlines()) <= 15, source
        assert not re.search(r"^\s*(def|class) |open\(", source, re.MULTILINE), source


def test_the_examples_of_the_readme_run_as_they_are(tmp_path):
    explorer, example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 9000)
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "features.npy", generator.standard_normal((9000, 16)) + 4 * np.eye(16)[labels])
    subprocess.run([sys.executable, "-c", explorer], cwd=tmp_path, capture_output=True, check=True)
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    spectrum, *scores = run.stdout.splitlines()
    assert re.fullmatch(r"SVE \d\.\d{3}, LSVR \d\.\d{3}", spectrum)
    assert [score.split()[0] for score in scores] == ["LinearProbe", "NMTune"]
    assert all(float(score.split()[1]) > 0.95 for score in scores)


def test_ci_and_readme_use_the_same_test_command():
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").split("\n")
    assert "make test" in commands
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
