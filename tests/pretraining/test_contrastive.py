"""Contrastive pre-training: what it learns and memorises, same bytes after an interruption, clear refusals."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nml_kit.backbones import build_clip, clip_loss, load_backbone, tokenize
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import extract_features
from nml_kit.noise import inject_caption_noise, inject_label_noise
from nml_kit.pretraining import ContrastiveRecipe, Processes, Recipe, is_pretrained, pretrain
from nml_kit.pretraining.contrastive import ContrastiveTraining
from nml_kit.store import Store
from tests.conftest import make_task

QUICK = ContrastiveRecipe(architecture="clip-compact:8", epochs=2, batch_size=24)
CORNERS = ("top left", "top right", "bottom left", "bottom right")


@pytest.fixture
def task():
    return captioned()


def captioned(per_class=24):
    """The quadrants, each named in words, with one of two styles in the caption."""
    task = make_task(per_class)
    styles = np.where(task.domains == "dark", "filled", "outline")
    captions = [f"{CORNERS[label]}, {style} icon" for label, style in zip(task.labels, styles, strict=True)]
    return dataclasses.replace(task, class_names=CORNERS, captions=np.array(captions))


def noise_for(task, ratio, seed=0):
    train = task.select(split="train")
    return inject_caption_noise(train.captions.tolist(), ratio, seed=seed, ids=train.ids)


def run(task, store, *, ratio=0.0, recipe=QUICK, seed=0):
    return pretrain(task, noise_for(task, ratio), recipe=recipe, seed=seed, store=store, progress=False)


def weights_bytes(store):
    (info,) = store.entries("backbone")
    return (info.path / "weights.safetensors").read_bytes()


def test_learns_what_captions_say_and_says_so_in_its_card(task, store):
    card = run(task, store, ratio=0.1, recipe=QUICK.model_copy(update={"epochs": 12, "learning_rate": 2e-3})).card
    assert card["objective"] == "contrastive"
    assert card["noise"]["requested_ratio"] == 0.1
    assert card["history"][-1]["test_accuracy"] >= 0.9
    assert card["history"][-1]["loss"] < card["history"][0]["loss"]
    assert card["history"][-1]["memorised"] < 0.5  # few epochs, shifted images: the general rule wins
    assert [row["epoch"] for row in card["history"]] == list(range(1, 13))


def test_long_training_without_shifts_memorises_exchanged_captions(store):
    recipe = QUICK.model_copy(update={"epochs": 32, "max_shift": 0, "learning_rate": 2e-3})
    card = run(captioned(8), store, ratio=0.3, recipe=recipe).card
    assert card["history"][-1]["memorised"] > 0.8


def test_measures_of_the_card_are_those_of_open_clip(task, store):
    import open_clip

    noise = noise_for(task, 0.3)
    backbone = run(task, store, ratio=0.3)
    clip, train, test = backbone.encode.clip, task.select(split="train"), task.select(split="test")
    words = open_clip.get_tokenizer("clip-compact")

    def images(part):
        return F.normalize(clip.encode_image(backbone.transform(torch.from_numpy(part.images))), dim=1)

    with torch.inference_mode():
        forms = ["{}", "{}, outline icon", "{}, filled icon"]  # as the captions are, not as those of other data
        prompts = [[form.format(name) for form in forms] for name in CORNERS]
        classes = torch.stack([F.normalize(clip.encode_text(words(p)), dim=1).mean(0) for p in prompts])
        accuracy = (images(test) @ F.normalize(classes, dim=1).T).argmax(1).numpy() == test.labels
        given, own = (F.normalize(clip.encode_text(words(list(texts))), dim=1) for texts in (noise.noisy, noise.clean))
        nearer = ((images(train) * given).sum(1) > (images(train) * own).sum(1)).numpy()[noise.mask]
    assert backbone.card["templates"] == forms
    assert backbone.card["history"][-1]["test_accuracy"] == pytest.approx(accuracy.mean())
    assert backbone.card["history"][-1]["memorised"] == pytest.approx(nearer.mean())
    assert "memorised" not in run(task, store, ratio=0.0).card["history"][-1]


def test_loss_is_the_symmetric_cross_entropy_of_all_pairs():
    clip = build_clip("clip-compact:8", seed=0).eval()
    images, tokens = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)), tokenize(list("abcde"))
    with torch.no_grad():
        vectors, words = (v.double().numpy() for v in (clip.encode_image(images), clip.encode_text(tokens)))
        found = clip_loss(clip, images, tokens).item()
    cosines = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ (
        words / np.linalg.norm(words, axis=1, keepdims=True)
    ).T
    scores = np.exp(cosines / 0.07)
    expected = [-np.log(np.diag(scores) / scores.sum(axis=axis)).mean() for axis in (0, 1)]
    assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_same_request_gives_the_same_bytes_and_another_one_others(task, tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    recipe = QUICK.model_copy(update={"epochs": 1})
    first, noise = run(task, one, ratio=0.1, recipe=recipe), noise_for(task, 0.1)
    before = torch.get_rng_state()
    second = run(task, two, ratio=0.1, recipe=recipe)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_bytes(one) == weights_bytes(two)
    assert first.fingerprint == second.fingerprint
    assert is_pretrained(task, noise, recipe=recipe, seed=0, store=one)
    assert not is_pretrained(task, noise, recipe=recipe, seed=1, store=one)
    assert run(task, one, ratio=0.1, recipe=recipe, seed=1).fingerprint != first.fingerprint
    assert run(task, one, ratio=0.3, recipe=recipe).fingerprint != first.fingerprint


def test_features_are_the_pooled_output_before_the_projection(task, store):
    backbone = run(task, store)
    features = extract_features(task, backbone, store=store, progress=False)
    assert features.values.shape == (len(task), 64)
    again = load_backbone(backbone.name, store=store)
    assert again.fingerprint == backbone.fingerprint
    with torch.inference_mode():
        batch = backbone.transform(torch.from_numpy(task.images[:5]))
        projected = backbone.encode.clip.visual.head(torch.from_numpy(np.array(features.values[:5])))
        torch.testing.assert_close(projected, backbone.encode.clip.encode_image(batch), rtol=1e-4, atol=1e-5)


def test_logit_scale_stays_in_its_bounds(task, store):
    clip = run(task, store, recipe=QUICK.model_copy(update={"learning_rate": 3.0, "epochs": 1})).encode.clip
    assert 0 <= clip.logit_scale.item() <= math.log(100) * (1 + 1e-6)


def test_what_does_not_belong_together_is_refused(task, store):
    labels = task.select(split="train").labels
    label_noise = inject_label_noise(labels, 0.1, num_classes=4, seed=0)
    with pytest.raises(InvalidInputError, match=r"Expected a Recipe with label noise.* got a ContrastiveRecipe"):
        pretrain(task, label_noise, recipe=QUICK, seed=0, store=store)
    with pytest.raises(InvalidInputError, match=r"Expected a ContrastiveRecipe with caption noise.* got a Recipe"):
        pretrain(task, noise_for(task, 0.1), recipe=Recipe(), seed=0, store=store)
    with pytest.raises(InvalidInputError, match=r"made from its 72 train captions.*record of 2 other captions"):
        pretrain(task, inject_caption_noise(["a", "b"], 0.0, seed=0), recipe=QUICK, seed=0, store=store)
    with pytest.raises(UnknownNameError, match="contrastive architecture 'compact-resnet'"):
        run(task, store, recipe=ContrastiveRecipe(architecture="compact-resnet"))


def test_several_processes_are_refused_in_words(task):
    with pytest.raises(InvalidInputError, match="Expected one process, got 2: contrastive pre-training runs in one"):
        ContrastiveTraining(task, noise_for(task, 0.1), QUICK, 0, Processes(2, 0, torch.device("cpu")))
