"""Tuned networks in a fit: what is chosen is what `fine_tune` gives, made once, and on training data alone."""

from dataclasses import replace

import numpy as np
import pytest

from nml_kit import LinearProbe, extract_features, load_backbone
from nml_kit.backbones import ImageTransform
from nml_kit.errors import InvalidInputError
from nml_kit.features import Fold
from nml_kit.spectrum import singular_values
from nml_kit.study.fit import Request, fit_request
from nml_kit.study.methods import expanded
from nml_kit.tuning import Tuning, fine_tune

TUNINGS = expanded("full", Tuning(epochs=2, batch_size=16), {"learning_rate": [0.0, 1e-3]}, seed=5)


@pytest.fixture
def to_tune(task, store):
    backbone = load_backbone("compact-resnet:8", transform=ImageTransform())
    features = extract_features(task, backbone, store=store, progress=False)
    fold = Fold(task.name, "OOD", ("bright",), ("dark",))
    return Request(features, fold, TUNINGS, "full", 5, task, backbone)


def test_the_chosen_settings_are_tuned_on_all_train_samples_and_tested(to_tune, store):
    found = fit_request(to_tune, store)
    assert found.candidates == ("full learning_rate=0.0", "full learning_rate=0.001")
    assert found.chosen == int(np.argmax(found.validation_accuracy))
    rate = (0.0, 1e-3)[found.chosen]
    tuning = Tuning(epochs=2, batch_size=16, random_state=5, learning_rate=rate)
    model = fine_tune(to_tune.task, to_tune.backbone, tuning, fold=to_tune.fold, store=store, progress=False)
    test = to_tune.task.select(split="test", domains=["dark"])
    np.testing.assert_array_equal(found.predictions, model.predict(test.images))
    np.testing.assert_array_equal(found.test.labels, test.labels)
    spectrum = singular_values(model.backbone(test.images).numpy())
    np.testing.assert_allclose(found.singular_values, spectrum, rtol=1e-6)


def test_it_is_made_once_and_again_when_something_differs(to_tune, store, monkeypatch):
    first = fit_request(to_tune, store)
    monkeypatch.setattr("nml_kit.study.fit.tune_on", None)  # whoever tunes again fails
    again = fit_request(to_tune, store)
    np.testing.assert_array_equal(first.predictions, again.predictions)
    other_terms = expanded("full", Tuning(epochs=2, batch_size=16), {"weights": [0.1, 0.2]}, seed=5)
    relabelled = replace(to_tune.features, labels=np.roll(to_tune.features.labels, 1))
    for other in (
        replace(to_tune, seed=6), replace(to_tune, fold=replace(to_tune.fold, fraction=0.5)),
        replace(to_tune, candidates=other_terms), replace(to_tune, features=relabelled),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="NoneType"):
            fit_request(other, store)


def test_test_samples_take_no_part_in_the_choice(to_tune, store):
    pixels = to_tune.task.image_data.copy()
    pixels[to_tune.task.splits == "test"] = 0
    blank = replace(to_tune.task, image_data=pixels)
    features = extract_features(blank, to_tune.backbone, store=store, progress=False)
    found = fit_request(replace(to_tune, task=blank, features=features), store)
    np.testing.assert_array_equal(found.validation_accuracy, fit_request(to_tune, store).validation_accuracy)


def test_heads_and_tuned_networks_share_the_validation_part(to_tune, store):
    """At a learning rate of 0 a tuned network is the linear probe, so both must have one validation accuracy."""
    frozen = expanded("full", Tuning(epochs=1, learning_rate=0.0), {"batch_size": [16, 64]}, seed=5)
    probes = expanded("LP", LinearProbe(), {"verbose": [False, 0]}, seed=5)
    tuned, head = (fit_request(replace(to_tune, candidates=candidates), store) for candidates in (frozen, probes))
    np.testing.assert_array_equal(tuned.validation_accuracy, head.validation_accuracy)
    np.testing.assert_array_equal(tuned.predictions, head.predictions)


def test_features_alone_cannot_be_tuned(to_tune, store):
    with pytest.raises(InvalidInputError, match="expected a network to tune"):
        fit_request(replace(to_tune, backbone=None), store)
