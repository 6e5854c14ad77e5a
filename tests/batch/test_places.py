"""Paths are relative to where the user stands."""

from pathlib import Path

import pytest

from nml_kit.batch.execution import ThisPythonManager
from nml_kit.batch.places import absolute_source
from nml_kit.batch.suites import checked, plan_notebook
from nml_kit.store import Store
from tests.batch.test_run import write_notebook


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory that the user stands in, with a folder that is called as a data set is."""
    monkeypatch.chdir(tmp_path)
    for folder in ("digits", "model", "mine/deep", "compact-resnet"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("a.csv", "b#1.csv", "c++.csv", "w.pt", "w+x.pt"):
        (tmp_path / file).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.csv", "{}/a.csv"),
        ("b#1.csv", "{}/b#1.csv"),
        ("c++.csv", "{}/c++.csv"),
        ("./mine/../a.csv", "{}/mine/../a.csv"),
        ("a.csv+mine/deep+digits", "{}/a.csv+{}/mine/deep+digits"),
        ("hf:model", "hf:{}/model"),
        ("hf:./model?pooling=cls", "hf:{}/model?pooling=cls"),
        ("hf:model+hf:owner/name", "hf:{}/model+hf:owner/name"),
        ("in-{{000..005}}.tar", "{}/in-{{000..005}}.tar"),
        ("mine/{{a,b}}.tar+x.tar", "{}/mine/{{a,b}}.tar+{}/x.tar"),
        ("file:w.pt#timm:resnet50", "file:{}/w.pt#timm:resnet50"),
        ("file:w+x.pt#timm:resnet50", "file:{}/w+x.pt#timm:resnet50"),
        ("timm:local-dir:model", "timm:local-dir:{}/model"),
        ("open_clip:local-dir:model", "open_clip:local-dir:{}/model"),
        ("sentence-transformers:model", "sentence-transformers:{}/model"),
        ("hf:owner/name", "hf:owner/name"),
        ("digits", "digits"),
        ("./digits", "{}/digits"),
        ("nothing.csv", "nothing.csv"),
        ("/somewhere/else.csv", "/somewhere/else.csv"),
        ("", ""),
        ("x" * 300 + "+a.csv", "x" * 300 + "+{}/a.csv"),
    ],
)
def test_a_source_names_its_paths_absolutely(here, source, expected):
    found = absolute_source(source.format())
    assert found == expected.format(here, here)
    assert absolute_source(found) == found


def test_only_parameters_that_may_hold_paths_are_changed(here):
    names = ("data", "backbone", "backbones", "ood_tasks", "results", "train_features", "method")
    defaults = dict.fromkeys(names, "''") | {"backbones": "[]", "ood_tasks": "{}"}
    parameters = "\n".join(f"{name} = {value}" for name, value in defaults.items())
    params = {
        "data": "a.csv",
        "backbone": "compact-resnet",
        "backbones": ["hf:model", "compact-resnet"],
        "ood_tasks": {"mine": ["model"]},
        "results": "mine",
        "train_features": "w.pt",
        "method": "model",
    }
    (run,) = checked(plan_notebook(write_notebook(here / "n.ipynb", parameters=parameters), runs="runs", params=params))
    assert run.params == {
        "data": f"{here}/a.csv",
        "backbone": "compact-resnet",
        "backbones": [f"hf:{here}/model", "compact-resnet"],
        "ood_tasks": {f"{here}/mine": ["model"]},
        "results": f"{here}/mine",
        "train_features": f"{here}/w.pt",
        "method": "model",
    }


def test_a_kernel_finds_the_directories_of_the_environment_from_where_the_user_stands(here, monkeypatch):
    monkeypatch.setenv("NML_HOME", "store")
    monkeypatch.setenv("NML_DATA", "../shipped")
    monkeypatch.delenv("NML_DATASETS", raising=False)
    environment = ThisPythonManager().kernel_spec.env
    assert environment["NML_HOME"] == str(here / "store") == str(Store().root)
    assert environment["NML_DATASETS"] == str(here / "datasets")
    assert Path(environment["NML_DATA"]) == here / "../shipped"
    monkeypatch.setenv("NML_DATASETS", "~/sets")
    assert ThisPythonManager().kernel_spec.env["NML_DATASETS"] == str(Path.home() / "sets")
