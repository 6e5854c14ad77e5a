"""A frozen network in one file gives the features of the network that it was made from, up to rounded weights."""

import numpy as np
import pytest
import torch

from nml_kit import inject_caption_noise, inject_label_noise, load_backbone, load_task
from nml_kit.backbones import Backbone, load_frozen, save_frozen
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.pretraining import ContrastiveRecipe, Recipe, pretrain
from nml_kit.store import read_tensors, write_tensors

TASK = load_task("icons-pretrain").limit(classes=3, train_per_class=8, seed=0)
IMAGES = np.asarray(TASK.images[:20])


@pytest.fixture(params=["supervised", "contrastive"])
def trained(request, store) -> Backbone:
    train = TASK.select(split="train")
    if request.param == "contrastive":
        noise, recipe = inject_caption_noise(train.captions.tolist(), 0.25, seed=0, ids=train.ids), ContrastiveRecipe
    else:
        noise, recipe = inject_label_noise(train.labels, 0.25, num_classes=3, seed=0, ids=train.ids), Recipe
    width = "clip-compact:8" if request.param == "contrastive" else "compact-resnet:8"
    return pretrain(
        TASK, noise, recipe=recipe(architecture=width, epochs=1, batch_size=8), seed=0, store=store, progress=False
    )


def test_features_survive_the_file_up_to_float16(trained, tmp_path):
    save_frozen(trained, tmp_path / "a.safetensors")
    save_frozen(trained, tmp_path / "b.safetensors")
    found = load_frozen(tmp_path / "a.safetensors")
    expected = trained(IMAGES)
    assert torch.linalg.norm(found(IMAGES) - expected) < 2**-8 * torch.linalg.norm(expected)
    assert found.transform == trained.transform
    assert found.card == {name: value for name, value in trained.card.items() if name != "history"}
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    images = trained.encode.clip.visual.trunk if found.card["objective"] == "contrastive" else trained.encode
    weights = sum(weight.numel() for weight in images.state_dict().values())
    assert (tmp_path / "a.safetensors").stat().st_size < 2 * weights + 8192


def test_what_is_not_such_a_network_is_refused(tmp_path, store):
    with pytest.raises(InvalidInputError, match="Expected a backbone made by `pretrain` with a compact ResNet"):
        save_frozen(load_backbone("compact-resnet"), tmp_path / "no.safetensors")
    with pytest.raises(DataFileError, match="Expected a safetensors file"):
        load_frozen(tmp_path / "nowhere.safetensors")
    write_tensors(tmp_path / "other.safetensors", {"a": np.zeros(3)})
    with pytest.raises(DataFileError, match="Expected a file that save_frozen wrote"):
        load_frozen(tmp_path / "other.safetensors")


def test_a_file_with_weights_missing_is_refused(trained, tmp_path):
    save_frozen(trained, tmp_path / "whole.safetensors")
    state = read_tensors(tmp_path / "whole.safetensors")
    state.pop("stem.0.weight")
    card = {"architecture": "compact-resnet:8", "transform": {}, "card": {}}
    write_tensors(tmp_path / "part.safetensors", state, metadata=card)
    with pytest.raises(DataFileError, match=r"save_frozen wrote(.|\n)*Missing key.*stem\.0\.weight"):
        load_frozen(tmp_path / "part.safetensors")
