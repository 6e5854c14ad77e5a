"""`nml audit` from files to a page, a recommendation and a head that another program reads."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from tests.one_notebook import NotebookRun
from tests.pictures import write_class_folders

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("two_tasks")]
NML = [sys.executable, "-c", "from nml_kit.cli.main import app; app(prog_name='nml')"]


def run_audit(directory, *options: str, command: str = "audit") -> subprocess.CompletedProcess:
    environment = os.environ | {"NML_HOME": str(directory / "store")}
    return subprocess.run([*NML, command, *options], cwd=directory, env=environment, capture_output=True, text=True)


def test_from_files_to_a_page_and_a_head(tmp_path):
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 240)
    X = (generator.standard_normal((240, 12)) + 3 * np.eye(12)[y]).astype(np.float32)
    names = np.array(["cat", "dog", "<b>owl</b>"])[y]
    for name, array in {"X": X[:160], "y": names[:160], "Xt": X[160:], "yt": names[160:]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    ran = run_audit(tmp_path, "--train", "X.npy", "y.npy", "--test", "Xt.npy", "yt.npy")
    assert ran.returncode == 0, ran.stderr
    run = NotebookRun(tmp_path / "runs" / "small" / "audit")
    run.check_page(figures=3)
    assert "12 features of 160 train and 80 test samples, 3 classes, 1 domains" in run.said
    assert "ID, do not bother" in run.said  # a plane parts these classes
    assert nbformat.read(run.run_dir / "notebook.ipynb", as_version=4).metadata
    classes, logits = runpy.run_path(str(run.run_dir / "load_head.py"))["load_head"](run.run_dir / "head.safetensors")
    assert classes == sorted(set(names))
    samples = pd.read_parquet(run.run_dir / "samples.parquet").query("method == 'LP' and seed == 0")
    said = [classes[code] for code in samples.sort_values("sample")["prediction"]]
    assert [classes[code] for code in logits(X[160:]).argmax(axis=1)] == said
    session = pytest.importorskip("onnxruntime").InferenceSession(run.run_dir / "head.onnx")
    (there,) = session.run(["logits"], {"features": X[160:]})
    np.testing.assert_allclose(there, logits(X[160:]), atol=1e-5)
    np.save(tmp_path / "y.npy", np.roll(names[:160], 1))  # the same names, other content: nothing stale is shown
    again = run_audit(tmp_path, "--train", "X.npy", "y.npy", "--test", "Xt.npy", "yt.npy")
    assert again.returncode == 0
    after = pd.read_parquet(run.run_dir / "samples.parquet").query("method == 'LP' and seed == 0")
    assert after["correct"].mean() < samples["correct"].mean() - 0.2


def test_a_model_in_a_directory_is_audited_by_its_name_alone(tmp_path):
    timm = pytest.importorskip("timm", reason="needs nml_kit[models]")
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet", pretrained=False), tmp_path / "model")
    name = "timm:local-dir:model"  # relative to where the user stands
    write_class_folders(tmp_path / "pictures", ["cat", "dog", "owl"], ("train", "test"), each=12)
    parameters = {"backbone": name, "data": "pictures", "seeds": "[0]", "epochs": "1"}
    options = [word for pair in parameters.items() for word in ("-p", "=".join(pair))]
    notebook = Path(__file__).parents[2] / "notebooks" / "audit.ipynb"
    ran = run_audit(tmp_path, str(notebook), "--profile", "small", *options, command="run")
    assert ran.returncode == 0, ran.stderr
    said = NotebookRun(tmp_path / "runs" / "small" / "audit").said
    assert "architecture: timm:test_resnet" in said
    assert "crop_pct: 0.95" in said
