"""Tuned networks in a study: what is chosen is what `fine_tune` would give, made once, and on training data alone."""

from dataclasses import replace

import numpy as np
import pytest

from nml_kit import LinearProbe, extract_features, load_backbone, load_profile
from nml_kit.backbones import ImageTransform
from nml_kit.errors import UnknownNameError
from nml_kit.features import Fold
from nml_kit.spectrum import singular_values
from nml_kit.study import TUNED, run_tuning_study, select_head
from nml_kit.study.tuning_study import TuningChoice, select_tuning, tuning_candidates
from nml_kit.tuning import Tuning, fine_tune

GRID = {"full": (Tuning(epochs=2, batch_size=16, random_state=5), {"learning_rate": [0.0, 1e-3]})}


@pytest.fixture
def choice(task, store):
    backbone = load_backbone("compact-resnet:8", transform=ImageTransform())
    features = extract_features(task, backbone, store=store, progress=False)
    return TuningChoice(task, backbone, features, Fold(task.name, "OOD", ("bright",), ("dark",)), GRID, "full", 5)


def test_the_chosen_settings_are_tuned_on_all_train_samples_and_tested(choice, store):
    found = select_tuning(choice, store)
    assert found.candidates == ("full learning_rate=0.0", "full learning_rate=0.001")
    assert found.chosen == int(np.argmax(found.validation_accuracy))
    rate = (0.0, 1e-3)[found.chosen]
    tuning = Tuning(epochs=2, batch_size=16, random_state=5, learning_rate=rate)
    model = fine_tune(choice.task, choice.backbone, tuning, fold=choice.fold, store=store, progress=False)
    test = choice.task.select(split="test", domains=["dark"])
    np.testing.assert_array_equal(found.evaluation.predictions, model.predict(test.images))
    np.testing.assert_array_equal(found.evaluation.labels, test.labels)
    spectrum = singular_values(model.backbone(test.images).numpy())
    np.testing.assert_allclose(found.evaluation.singular_values, spectrum, rtol=1e-6)


def test_it_is_made_once_and_again_when_something_differs(choice, store, monkeypatch):
    first = select_tuning(choice, store)
    monkeypatch.setattr("nml_kit.study.tuning_study.tune_on", None)  # whoever tunes again fails
    again = select_tuning(choice, store)
    np.testing.assert_array_equal(first.evaluation.predictions, again.evaluation.predictions)
    base, grid = GRID["full"]
    relabelled = replace(choice.features, labels=np.roll(choice.features.labels, 1))
    for other in (
        choice._replace(seed=6), choice._replace(fold=replace(choice.fold, fraction=0.5)),
        choice._replace(candidates={"full": (base, {**grid, "weights": [0.1]})}), choice._replace(features=relabelled),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="NoneType"):
            select_tuning(other, store)


def test_test_samples_take_no_part_in_the_choice(choice, store):
    pixels = choice.task.image_data.copy()
    pixels[choice.task.splits == "test"] = 0
    blank = replace(choice.task, image_data=pixels)
    features = extract_features(blank, choice.backbone, store=store, progress=False)
    found = select_tuning(choice._replace(task=blank, features=features), store)
    np.testing.assert_array_equal(found.validation_accuracy, select_tuning(choice, store).validation_accuracy)


def test_heads_and_tuned_networks_share_the_validation_part(choice, store):
    """At a learning rate of 0 a tuned network is the linear probe, so both must have one validation accuracy."""
    frozen = choice._replace(candidates={"full": Tuning(epochs=1, learning_rate=0.0, random_state=5)})
    head = select_head(
        choice.features, choice.fold, {"LP": LinearProbe(random_state=5)}, method="LP", seed=5, store=store
    )
    found = select_tuning(frozen, store)
    np.testing.assert_array_equal(found.validation_accuracy, head.validation_accuracy)
    np.testing.assert_array_equal(found.evaluation.predictions, head.evaluation.predictions)


def test_names_are_known_and_the_terms_have_weights():
    profile = load_profile("small")
    for method in TUNED:
        (base, grid) = tuning_candidates(method, profile, 3)[method]
        assert base.random_state == 3
        assert base.method == ("lora" if "LoRA" in method else "full")
        assert ("weights" in grid) == ("terms" in method)
    with pytest.raises(UnknownNameError, match="did you mean 'LoRA'"):
        tuning_candidates("LORA", profile, 0)
    with pytest.raises(UnknownNameError, match="did you mean 'NMTune'"):
        run_tuning_study(profile, methods=("NMTun",))
