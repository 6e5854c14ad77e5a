"""Exported heads: the loader, which knows nothing of nml_kit, and ONNX Runtime say what the head says."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from nml_kit.errors import InvalidInputError
from nml_kit.heads import LinearProbe, MLPTune, NMTune, save_head, save_onnx
from nml_kit.heads.export import LOADER

HEADS = [
    LinearProbe(epochs=2), MLPTune(epochs=2), NMTune(epochs=2), NMTune(epochs=2, hidden=(16, 8)),
    NMTune(epochs=2, recipe="reference"), MLPTune(epochs=2, recipe="reference", dtype="float64"),
]  # fmt: skip
NAMES = ["cat", "<b>dog</b>", "owl"]


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return generator.standard_normal((300, 12)).astype(np.float32), generator.integers(0, 3, 300)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{type(head).__name__}-{head.get_params().get('recipe')}")
def test_other_programs_give_the_same_probabilities(head, data, tmp_path):
    X, y = data
    head.fit(X, y)
    expected = head.predict_proba(X)
    saved = save_head(head, tmp_path / "head.safetensors", class_names=NAMES)
    classes, logits = runpy.run_path(str(tmp_path / LOADER))["load_head"](saved)
    assert classes == NAMES
    np.testing.assert_allclose(softmax(logits(X.astype(np.float64))), expected, atol=1e-5)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(save_onnx(head, tmp_path / "head.onnx", class_names=NAMES))
    (found,) = session.run(["logits"], {"features": X})
    np.testing.assert_allclose(softmax(found), expected, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == NAMES


def test_the_loader_needs_no_nml_kit_and_is_short(data, tmp_path):
    save_head(LinearProbe(epochs=1).fit(*data), tmp_path / "head.safetensors")
    code = (
        "import sys; sys.modules['nml_kit'] = None; import numpy as np; from load_head import load_head\n"
        "classes, logits = load_head('head.safetensors'); print(classes, logits(np.zeros((2, 12))).shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['0', '1', '2'] (2, 3)"


def test_what_cannot_be_written_is_refused(data, tmp_path):
    for save in (save_head, save_onnx):
        with pytest.raises(NotFittedError):
            save(LinearProbe(), tmp_path / "head")
        with pytest.raises(InvalidInputError, match="Expected 3 class names"):
            save(LinearProbe(epochs=1).fit(*data), tmp_path / "head", class_names=["one"])
        with pytest.raises(InvalidInputError, match="Expected a fitted LinearProbe, MLPTune or NMTune, got Logistic"):
            save(LogisticRegression().fit(*data), tmp_path / "head")
    assert list(tmp_path.iterdir()) == []


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
