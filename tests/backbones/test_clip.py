"""The contrastive model against open_clip's own construction and mathematics."""

import numpy as np
import open_clip
import pytest
import torch

from nml_kit.backbones import build_clip, class_embeddings, load_backbone, text_embeddings, tokenize
from nml_kit.backbones.networks import CompactResNet
from nml_kit.errors import UnknownNameError

IMAGES = np.random.default_rng(0).integers(0, 256, size=(3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip():
    return build_clip("clip-compact", seed=0).eval()


def test_open_clip_itself_builds_the_same_model_by_its_name(clip):
    torch.manual_seed(0)
    by_name = open_clip.create_model("clip-compact", pretrained_text=False)
    assert isinstance(by_name.visual.trunk, CompactResNet)
    for (name, ours), theirs in zip(clip.state_dict().items(), by_name.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)


def test_weights_depend_on_the_seed_alone(clip):
    before = torch.get_rng_state()
    again, other = build_clip("clip-compact", seed=0), build_clip("clip-compact", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.text_projection, clip.text_projection)
    assert not torch.equal(other.text_projection, clip.text_projection)


def test_features_are_what_the_projection_gets(clip):
    backbone = load_backbone("clip-compact", seed=0)
    captured = []
    clip.visual.head.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    with torch.inference_mode():
        clip.encode_image(backbone.transform(torch.from_numpy(IMAGES)))
    assert backbone(IMAGES).shape == (3, 256)
    torch.testing.assert_close(backbone(IMAGES), captured[0])
    assert load_backbone("clip-compact:24")(IMAGES).shape == (3, 192)


def test_class_embeddings_are_normalised_means_of_normalised_texts(clip):
    names, templates = ["ice cream", "bus"], ["{}", "{}, outline icon", "a {}."]
    with torch.inference_mode():
        found = class_embeddings(clip, names, templates).numpy()
        for name, row in zip(names, found, strict=True):
            texts = clip.encode_text(open_clip.get_tokenizer("clip-compact")([t.format(name) for t in templates]))
            mean = (texts.numpy() / np.linalg.norm(texts.numpy(), axis=1, keepdims=True)).mean(axis=0)
            np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)


def test_texts_have_unit_vectors_whatever_else_is_asked(clip):
    with torch.inference_mode():
        many = text_embeddings(clip, tokenize([f"{number}, filled icon" for number in range(600)]))
        one = text_embeddings(clip, tokenize(["7, filled icon"]))
    torch.testing.assert_close(many.norm(dim=1), torch.ones(600))
    torch.testing.assert_close(many[7:8], one, rtol=1e-4, atol=1e-5)


def test_captions_of_the_shipped_data_fit_into_the_context():
    from nml_kit.data import load_task

    end = tokenize(["x"]).max()
    for name in ("icons-pretrain", "icons", "emoji"):
        captions = np.unique(load_task(name).captions).tolist()
        whole = open_clip.get_tokenizer("clip-compact", context_length=77)(captions)
        lengths = (whole == end).int().argmax(dim=1) + 1
        assert (lengths > 16).float().mean() < 0.005  # what is cut off, at most


@pytest.mark.parametrize("name", ["clip-compact:20", "clip-compct"])
def test_unknown_architecture_names_the_nearest(name):
    with pytest.raises(UnknownNameError, match=r"did you mean 'clip-compact.*a multiple of 8"):
        build_clip(name, seed=0)
    with pytest.raises(UnknownNameError, match="Unknown backbone"):
        load_backbone(name)
