"""The noise gallery: what it counts and shows against numpy on the noise records themselves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.noise import inject_caption_noise, inject_label_noise
from nml_kit.study import described_changes, load_profile, noise_finding, noisy_samples, pretraining_task
from nml_kit.widgets import noise as widget_noise
from nml_kit.widgets.noise import NoiseGallery
from nml_kit.widgets.view import Point
from tests.conftest import make_task

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def gallery() -> NoiseGallery:
    return NoiseGallery(load_profile("smoke"))


def train_of_smoke():
    return pretraining_task(load_profile("smoke")).select(split="train")


def off_diagonal(figure: go.Figure) -> np.ndarray:
    return np.nan_to_num(np.array(figure.data[1].z, dtype=float))


def expected_shares(own: np.ndarray, given: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (own, given), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.fill_diagonal(shares, 0)
    return shares


@pytest.mark.parametrize("kind", ["uniform", "asymmetric"])
def test_the_matrix_shows_the_shares_of_the_flips(gallery, kind):
    gallery.choose(kind=kind, ratio=0.25, seed=3)
    train = train_of_smoke()
    noise = inject_label_noise(train.labels, 0.25, num_classes=6, kind=kind, seed=3, ids=train.ids)
    assert off_diagonal(gallery.matrix.figure) == pytest.approx(expected_shares(noise.clean, noise.noisy, 6))
    assert f"{noise.mask.sum()} of {len(train)} labels changed (25 %)" in gallery.matrix.title.value
    assert f">{kind.capitalize()} noise: " in gallery.matrix.title.value


def test_captions_are_counted_by_the_class_they_come_from(gallery):
    gallery.choose(objective="contrastive", ratio=0.5)
    train = train_of_smoke()
    noise = inject_caption_noise(train.captions.tolist(), 0.5, seed=0, ids=train.ids)
    given = train.labels[noise.source]
    assert off_diagonal(gallery.matrix.figure) == pytest.approx(expected_shares(train.labels, given, 6))
    within = int((noise.mask & (given == train.labels)).sum())
    assert f"{within} stay within their class" in gallery.matrix.title.value
    first = np.flatnonzero(noise.mask)[0]
    assert f"“{train.captions[first]}” → “{noise.noisy[first]}”" in gallery.samples.value
    assert gallery.samples.value.count("<figure") == 24


def test_one_class_shows_its_own_changes_only(gallery):
    gallery.choose(ratio=0.3, own_class=train_of_smoke().class_names[2])
    train = train_of_smoke()
    noise = inject_label_noise(train.labels, 0.3, num_classes=6, kind="uniform", seed=0, ids=train.ids)
    of_class = np.flatnonzero(noise.mask & (noise.clean == 2))
    shown = gallery.samples.value
    assert shown.count("<figcaption") == len(of_class) > 0
    assert all(f"{train.class_names[2]} → {train.class_names[new]}<" in shown for new in noise.noisy[of_class])


def test_a_click_on_a_row_chooses_its_class_and_leaves_the_matrix(gallery):
    before = gallery.matrix.title.value
    gallery._clicked(Point(None, [0, 0], "x", "bank"))
    assert gallery.view["own_class"] == "bank"
    assert gallery.matrix.title.value == before
    gallery._clicked(Point(None, [0, 0], "x", "no such class"))
    assert gallery.view["own_class"] == "bank"


def test_the_view_is_set_as_it_is_read(gallery):
    saved = {"objective": "supervised", "kind": "asymmetric", "ratio": 0.07, "seed": 5, "own_class": "bank"}
    gallery.view = saved
    assert gallery.view == saved
    again = NoiseGallery(load_profile("smoke"))
    again.view = gallery.view
    assert again.samples.value == gallery.samples.value
    assert again.matrix.figure.to_json() == gallery.matrix.figure.to_json()


@pytest.mark.parametrize("choice", [{"kind": "pair"}, {"ratio": 0.0}, {"seed": -1}, {"own_class": "no such class"}])
def test_a_choice_that_is_not_offered_is_an_error(gallery, choice):
    before = gallery.view
    with pytest.raises(InvalidInputError, match=f"Expected {next(iter(choice))}"):
        gallery.choose(**choice)
    assert gallery.view == before
    with pytest.raises(UnknownNameError, match="noise"):
        gallery.choose(noise=0.1)


def test_the_kind_has_no_say_over_captions(gallery):
    gallery.choose(objective="contrastive")
    assert gallery._controls["kind"].disabled
    gallery.choose(objective="supervised")
    assert not gallery._controls["kind"].disabled


def test_static_has_a_slider_over_the_ratios_of_the_profile(gallery):
    profile = load_profile("smoke").model_copy(update={"ratios": (0.0, 0.1, 0.3)})
    page = NoiseGallery(profile).static()
    assert isinstance(page, go.Figure)
    assert not isinstance(page, go.FigureWidget)
    [slider] = page.layout.sliders
    assert [step.label for step in slider.steps] == ["10 %", "30 %"]
    train = train_of_smoke()
    for number, ratio in enumerate((0.1, 0.3)):
        _, shown = slider.steps[number].args[0]["z"]
        noise = inject_label_noise(train.labels, ratio, num_classes=6, kind="uniform", seed=0, ids=train.ids)
        expected = expected_shares(noise.clean, noise.noisy, 6)
        assert np.nan_to_num(np.asarray(shown, dtype=float)) == pytest.approx(expected, abs=1e-4)
        assert f"{noise.mask.sum()} of 72" in slider.steps[number].args[1]["title.text"]
        if number == 0:
            assert off_diagonal(page) == pytest.approx(expected)
    assert not gallery.static().layout.sliders  # one ratio needs none


def test_names_and_captions_from_data_are_shown_as_text(monkeypatch):
    task = make_task()
    task = replace(task, class_names=(EVIL, *task.class_names[1:]), captions=np.array([EVIL + i for i in task.ids]))
    monkeypatch.setattr(widget_noise, "pretraining_task", lambda _: task)
    gallery = NoiseGallery(load_profile("smoke"))
    gallery.choose(own_class=EVIL)
    labels = gallery.samples.value
    gallery.choose(objective="contrastive")
    for shown in (labels, gallery.samples.value):
        assert "<img src=x" not in shown
        assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    texts = [
        *gallery.matrix.figure.data[1].y,
        *gallery.static().data[1].x,
        *gallery.matrix.figure.layout.xaxis.ticktext,
    ]
    assert not [text for text in texts if "<img" in text]
    assert "&lt;img" in gallery.matrix.figure.data[1].y[0]
    gallery.choose(own_class="every class")
    gallery._clicked(Point(None, [0, 0], "x", gallery.matrix.figure.data[1].y[0]))
    assert gallery.view["own_class"] == EVIL


def test_a_task_of_texts_is_refused(monkeypatch):
    monkeypatch.setattr(widget_noise, "pretraining_task", lambda _: replace(make_task(), image_data=None))
    with pytest.raises(InvalidInputError, match="with images"):
        NoiseGallery(load_profile("smoke"))


def test_confusion_flips_into_other_classes(gallery):
    gallery.choose(kind="confusion", ratio=0.4)
    table = gallery._table
    assert table["changed"].sum() == round(0.4 * len(table))
    assert (table["own"] != table["given"])[table["changed"]].all()


def test_tables_refuse_what_they_cannot_count():
    profile, task = load_profile("smoke"), make_task()
    with pytest.raises(InvalidInputError, match="'uniform', 'asymmetric' or 'confusion'"):
        noisy_samples(profile, task, 0.1, objective="supervised", kind="pair", seed=0)
    with pytest.raises(UnknownNameError, match="objective"):
        noisy_samples(profile, task, 0.1, objective="clip", kind="uniform", seed=0)


def test_no_sample_may_have_changed():
    table = pd.DataFrame({"own": [0, 1], "given": [0, 1], "changed": [False, False]})
    rows, captions, heading = described_changes(table, ["a", "b"], "supervised", own_class=None, most=3)
    assert (len(rows), captions) == (0, [])
    assert heading.startswith("0 of 0")
    assert noise_finding(table, "supervised") == "0 of 2 labels changed (0 %), 0 % to 0 % of a class"
