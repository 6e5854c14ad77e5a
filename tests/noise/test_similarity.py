"""Noise that follows similarity: the matrix's invariants, and the records and keys of the kinds that existed before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from nml_kit.data import noise_fingerprint
from nml_kit.errors import InvalidInputError
from nml_kit.noise import inject_label_noise, similarity_transition
from nml_kit.study import label_noise, load_profile, pretraining_task


def pictures(seed: int, per_class: int = 5, classes: int = 6, side: int = 19) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 200, size=(classes, side, side, 3))
    labels = generator.permutation(np.repeat(np.arange(classes), per_class))
    return (centres[labels] + generator.integers(0, 50, size=(len(labels), side, side, 3))).astype(np.uint8), labels


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), side=st.sampled_from([8, 16, 19]))
def test_rows_sum_to_one_and_more_similar_is_more_likely(seed, side):
    images, labels = pictures(seed, side=side)
    matrix = similarity_transition(images, labels, 6)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-8)
    assert (matrix.diagonal() == 0).all()
    block = side // 8
    cut = images[:, : 8 * block, : 8 * block].astype(float)
    thumbnails = np.stack([cut[:, i::block, j::block] for i in range(block) for j in range(block)]).mean(axis=0)
    means = np.stack([thumbnails[labels == label].mean(axis=0).ravel() for label in range(6)])
    for row, distances in enumerate(cdist(means, means)):
        others = np.arange(6) != row
        # Strided means hold the same pixels of each block as block means do: the same thumbnails.
        assert spearmanr(matrix[row, others], -distances[others]).statistic == pytest.approx(1)


def test_equal_classes_are_confused_alike_and_a_distant_one_keeps_a_row():
    images = np.full((4, 8, 8, 3), 10, np.uint8)
    matrix = similarity_transition(images, np.arange(4), 4)
    np.testing.assert_allclose(matrix, (1 - np.eye(4)) / 3, atol=1e-9)
    images[3] = 255
    matrix = similarity_transition(images, np.arange(4), 4)
    assert matrix[3].sum() == pytest.approx(1)
    assert matrix[:3, 3].max() < 1e-3


def test_errors_say_what_came():
    images, labels = pictures(0)
    with pytest.raises(InvalidInputError, match=r"at least 8×8 pixels.*got \(30, 4, 4, 3\)"):
        similarity_transition(images[:, :4, :4], labels, 6)
    with pytest.raises(InvalidInputError, match="each of at least 2 classes, got 7 classes"):
        similarity_transition(images, labels, 7)


def test_confusion_flips_exactly_nested_and_into_similar_classes():
    profile = load_profile("smoke").model_copy(update={"noise": "confusion"})
    task = pretraining_task(profile)
    train = task.select(split="train")
    low, high = (label_noise(profile, task, ratio, seed=3) for ratio in (0.1, 0.5))
    assert high.mask.sum() == int(0.5 * len(train) + 0.5)
    assert (high.noisy[low.mask] == low.noisy[low.mask]).all()
    matrix = similarity_transition(train.images, train.labels, task.num_classes)
    uniform = inject_label_noise(train.labels, 0.5, num_classes=task.num_classes, seed=3, ids=train.ids)
    likelihood = {name: matrix[n.clean[n.mask], n.noisy[n.mask]].mean() for name, n in (("c", high), ("u", uniform))}
    assert likelihood["c"] > likelihood["u"]


@pytest.mark.parametrize("kind", ["uniform", "asymmetric"])
def test_records_of_the_kinds_that_existed_are_unchanged(kind):
    profile = load_profile("smoke").model_copy(update={"noise": kind})
    task = pretraining_task(profile)
    train = task.select(split="train")
    for ratio in (0.1, 0.3):
        plain = inject_label_noise(train.labels, ratio, num_classes=task.num_classes, kind=kind, seed=1, ids=train.ids)
        assert noise_fingerprint(label_noise(profile, task, ratio, 1)) == noise_fingerprint(plain)


def test_clean_labels_have_no_kind_to_confuse():
    profile = load_profile("smoke")
    task = pretraining_task(profile)
    profiles = [profile.model_copy(update={"noise": kind}) for kind in ("confusion", "asymmetric", "uniform")]
    records = [label_noise(each, task, 0.0, 0) for each in profiles]
    assert len(set(map(noise_fingerprint, records))) == 1
