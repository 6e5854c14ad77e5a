"""Matrices and images: their cells are the shares of rows, their texts are texts, wrong input is refused."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from nml_kit import plots
from nml_kit.errors import InvalidInputError
from tests.plots.tables import HOSTILE, panel_names, probabilities

NAN = math.nan


def test_confusion_shows_shares_of_rows_and_keeps_the_diagonal_apart():
    figure = plots.confusion_matrix(np.array([[8, 2], [0, 0]]), ["cat", HOSTILE], title="t")
    kept, moved = figure.data
    np.testing.assert_array_equal(kept.z, [[0.8, NAN], [NAN, 0.0]])
    np.testing.assert_array_equal(moved.z, [[NAN, 0.2], [0.0, NAN]])
    assert (moved.zmin, moved.zmax) == (0, 0.2)
    assert moved.x[1] == "&lt;img src=x onerror=alert(1)&gt;"
    assert figure.layout.xaxis.ticktext[1] == "&lt;img src=x onerror=…"
    assert plots.confusion_matrix(np.eye(3), list("abc"), title="t").data[1].zmax == 1.0


@pytest.mark.parametrize(
    ("matrix", "names"),
    [
        (np.eye(3), ["a", "b"]),
        (np.ones((2, 3)), ["a", "b"]),
        (np.eye(2), ["a", "a"]),
        (np.eye(1), ["a"]),
        (-np.eye(2), ["a", "b"]),
        (np.full((2, 2), NAN), ["a", "b"]),
        (np.full((2, 2), math.inf), ["a", "b"]),
    ],
)
def test_a_wrong_confusion_matrix_is_refused(matrix, names):
    with pytest.raises(InvalidInputError, match="Expected K ≥ 2 distinct class names and a K×K matrix"):
        plots.confusion_matrix(matrix, names, title="t")


def test_only_the_classes_that_change_most_are_shown():
    change = np.zeros((30, 30))
    change[3, 4], change[5, 5] = 0.25, 1.0
    [heat] = plots.confusion_changes(change, [f"class {number}" for number in range(30)], title="t").data
    assert heat.z.shape == (plots.MOST_CLASSES, plots.MOST_CLASSES)
    assert (heat.zmin, heat.zmax, heat.z.max(), list(heat.x).count("class 4")) == (-0.25, 0.25, 0.25, 1)


def test_probabilities_are_cells_in_the_order_of_the_ratios():
    figure = plots.best_ratio_probabilities(probabilities().sample(frac=1, random_state=0), title="t")
    assert list(figure.data[0].x) == ["0 %", "10 %", "30 %"]
    assert np.asarray(figure.data[0].z).tolist() == [[0.2, 0.5, 0.3]] * 4


def test_the_gallery_shows_the_images_themselves_with_their_titles():
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    figure = plots.noise_gallery(images, [f"{HOSTILE} → cat"] + ["dog → cat"] * 9, title="t")
    assert len(figure.data) == 10
    encoded = figure.data[9].source.removeprefix("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), images[9])
    captions = panel_names(figure)
    assert captions[0].replace("<br>", " ") == "&lt;img src=x onerror=alert(1)&gt; → cat"
    assert captions[1] == "dog → cat"
    assert len({note.xref for note in figure.layout.annotations}) == 10


@pytest.mark.parametrize(
    ("images", "titles", "message"),
    [
        (np.zeros((2, 32, 32), np.uint8), ["a", "b"], "Expected uint8 images of shape"),
        (np.zeros((2, 32, 32, 3)), ["a", "b"], "got float64"),
        (np.zeros((0, 32, 32, 3), np.uint8), [], "n ≥ 1"),
        (np.zeros((2, 32, 32, 3), np.uint8), ["a"], "one title per image, got 1 for 2 images"),
    ],
)
def test_wrong_gallery_input_is_refused(images, titles, message):
    with pytest.raises(InvalidInputError, match=message):
        plots.noise_gallery(images, titles, title="t")
