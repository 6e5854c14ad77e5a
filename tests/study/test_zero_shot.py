"""Zero-shot classification and retrieval against open_clip, scikit-learn-like counting, and cases known by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from nml_kit.backbones import Backbone, ImageTower, ImageTransform, load_backbone
from nml_kit.data import load_task
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.pretraining import CAPTION_TEMPLATES
from nml_kit.study import zero_shot_predictions
from nml_kit.study.extras import _chance, _ranks, retrieval_recall
from tests.conftest import make_task

NAMES = ("ice cream", "bus", "left arrow", "sun")


@pytest.fixture
def task():
    quadrants = make_task(12)
    captions = [
        f"{NAMES[label]}, {domain} icon" for label, domain in zip(quadrants.labels, quadrants.domains, strict=True)
    ]
    return replace(quadrants, class_names=NAMES, captions=np.array(captions))


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("clip-compact:8", seed=0)


def cosines(backbone, images, texts):
    """By open_clip's own calls: cosine of every image and text."""
    clip, words = backbone.encode.clip, open_clip.get_tokenizer("clip-compact")
    with torch.inference_mode():
        vectors = clip.encode_image(backbone.transform(torch.from_numpy(images)), normalize=True)
        return (vectors @ clip.encode_text(words(texts), normalize=True).T).numpy()


def test_predictions_are_those_of_open_clip(backbone, task, store):
    test = task.select(split="test")
    texts = [template.format(name) for name in NAMES for template in CAPTION_TEMPLATES]
    with torch.inference_mode():
        clip, words = backbone.encode.clip, open_clip.get_tokenizer("clip-compact")
        means = F.normalize(clip.encode_text(words(texts)), dim=1).unflatten(0, (4, -1)).mean(1)
        images = clip.encode_image(backbone.transform(torch.from_numpy(test.images)), normalize=True)
        expected = (images @ F.normalize(means, dim=1).T).argmax(1).numpy()
    table = zero_shot_predictions(backbone, task, store=store)
    assert table["predicted"].tolist() == expected.tolist()
    assert table["sample"].tolist() == test.ids.tolist()
    assert table["correct"].tolist() == (expected == test.labels).tolist()
    shuffled = [np.random.default_rng(seed).permutation(expected) == test.labels for seed in range(4000)]
    assert table["chance"].mean() == pytest.approx(np.mean(shuffled), abs=0.01)


def test_always_naming_one_class_is_chance_however_large_the_class(backbone, task, store):
    constant = replace(task, image_data=np.full_like(task.images, 7))
    table = zero_shot_predictions(backbone, constant, store=store)
    assert table["predicted"].nunique() == 1
    assert table["correct"].mean() == pytest.approx(table["chance"].mean())


def test_one_template_is_the_nearest_text(backbone, task, store):
    found = zero_shot_predictions(backbone, task, templates=["{}, bright icon"], split="train", store=store)
    train = task.select(split="train")
    expected = cosines(backbone, train.images, [f"{name}, bright icon" for name in NAMES]).argmax(1)
    assert found["predicted"].tolist() == expected.tolist()


@pytest.mark.parametrize("order", [(3, 0, 2, 1), (1, 2, 3, 0)])
def test_the_order_of_classes_does_not_matter(backbone, task, store, order):
    shuffled = replace(task, class_names=tuple(NAMES[old] for old in order), labels=np.argsort(order)[task.labels])
    found, again = (zero_shot_predictions(backbone, which, store=store) for which in (task, shuffled))
    assert [NAMES[k] for k in found["predicted"]] == [shuffled.class_names[k] for k in again["predicted"]]
    assert found["correct"].tolist() == again["correct"].tolist()


def test_recall_counts_by_sorting_all_cosines(backbone, task, store):
    test = task.select(split="test")
    captions = np.unique(test.captions)
    scores = cosines(backbone, test.images, captions.tolist())
    table = retrieval_recall(backbone, task, ks=(1, 3), store=store)
    for k in (1, 3):
        nearest = captions[np.argsort(-scores, axis=1)[:, :k]]
        hits = (nearest == test.captions[:, None]).any(axis=1)
        rows = table.query("direction == 'image→text' and k == @k")
        assert rows["hit"].tolist() == hits.tolist()
        assert rows["sample"].tolist() == test.ids.tolist()
        assert rows["chance"].to_numpy() == pytest.approx(k / len(captions))
        nearest = test.captions[np.argsort(-scores.T, axis=1)[:, :k]]
        rows = table.query("direction == 'text→image' and k == @k")
        assert rows["hit"].tolist() == (nearest == captions[:, None]).any(axis=1).tolist()
        assert rows["sample"].tolist() == captions.tolist()


class KnownModel(torch.nn.Module):
    """Image and text vectors known by hand: an image's is its first pixel's colour, a text's is its colour word."""

    colours = ("red", "green", "blue")
    context_length = 16

    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.visual = torch.nn.Module()
        self.visual.trunk = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        self.visual.head = torch.nn.Identity()

    def encode_text(self, tokens, normalize=False):
        words = [open_clip.tokenizer.decode(row) for row in tokens]
        return torch.tensor([[float(colour in text) for colour in self.colours] for text in words])


def test_a_recall_that_is_known_by_hand(store):
    # red, red again, a green one with a blue caption, a blue one with a green caption
    colours = np.eye(3, dtype=np.uint8)[[0, 0, 1, 2]] * 255
    images = np.broadcast_to(colours[:, None, None, :], (4, 32, 32, 3)).copy()
    captions = np.array(["red", "red", "blue", "green"])
    four = replace(
        make_task(1), ids=np.array(list("abcd")), captions=captions, splits=np.array(["test"] * 4), image_data=images
    )
    transform = ImageTransform(mean=(0.0,) * 3, std=(1.0,) * 3)
    known = Backbone("known", ImageTower(KnownModel()).eval(), "known", transform)
    recall = retrieval_recall(known, four, ks=(1, 2, 3), store=store).groupby(["direction", "k"])["hit"].mean()
    # Of three captions, the right one is tied with another wrong one for both exchanged images: third place.
    assert recall["image→text"].tolist() == [0.5, 0.5, 1.0]
    # blue and green: their image is tied with both red ones, behind the wrong one: fourth place.
    assert recall["text→image"].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_ranks_and_chance_agree_with_all_orders_of_five():
    groups = torch.tensor([0, 0, 1, 2, 2])
    found = np.zeros((3, 5))
    orders = list(itertools.permutations(range(5)))
    for order in orders:
        scores = torch.tensor(order, dtype=torch.float32)[None]
        for group in range(3):
            rank = _ranks(torch.ones(1, 1), scores.T, torch.tensor([group]), groups)[0]
            found[group, rank - 1] += 1 / len(orders)
    for k in range(1, 7):
        expected = found[:, :k].sum(axis=1)
        np.testing.assert_allclose(_chance(np.bincount(groups), 5, k), expected, atol=1e-12)
    assert _chance(np.array([3]), 20, 4)[0] == pytest.approx(1 - math.comb(17, 4) / math.comb(20, 4))


def test_a_model_that_cannot_tell_images_apart_hits_nothing(backbone, task, store):
    constant = replace(task, image_data=np.full_like(task.images, 7))
    table = retrieval_recall(backbone, constant, ks=(1,), store=store)
    assert table.query("direction == 'text→image'")["hit"].sum() == 0


def test_what_cannot_be_asked_is_refused(task, backbone, store):
    with pytest.raises(InvalidInputError, match="Expected a backbone with a text network, got 'compact-resnet'"):
        zero_shot_predictions("compact-resnet", task, store=store)
    with pytest.raises(UnknownNameError, match="Unknown pre-trained backbone 'abc'"):
        retrieval_recall("nml:abc", task, store=store)
    with pytest.raises(UnknownNameError, match="Unknown split 'tst': did you mean 'test'"):
        zero_shot_predictions(backbone, task, split="tst", store=store)
    with pytest.raises(InvalidInputError, match="got the text task 'emoji-text'"):
        zero_shot_predictions(backbone, load_task("emoji-text"), store=store)
    with pytest.raises(InvalidInputError, match=r"Expected templates with '\{\}'"):
        zero_shot_predictions(backbone, task, templates=["an icon"], store=store)
    with pytest.raises(InvalidInputError, match="Expected ks of at least 1"):
        retrieval_recall(backbone, task, ks=(0,), store=store)
