"""The explorers on the reference results: what they draw is what the tables say, `view` reopens, texts stay texts."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from nml_kit.data import load_task
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import extract_features
from nml_kit.study import comparison, load_results, quantity_bands, spectra_by_choice, whole_features
from nml_kit.widgets import NoiseComparison, SpectrumExplorer
from nml_kit.widgets.explorer import gallery_html


@pytest.fixture(scope="module")
def results(part_of_reference):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NML_DATA", str(part_of_reference))
        return load_results()


@pytest.fixture(autouse=True)
def _store_of_the_session(smoke_home, monkeypatch):
    """Features of the frozen networks are made once."""
    monkeypatch.setenv("NML_HOME", str(smoke_home))


@pytest.fixture(scope="module")
def opened(results):
    """Each explorer once, for it takes seconds to open, with the view that it opens with."""
    explorers = SpectrumExplorer(results), NoiseComparison(results)
    return [(explorer, explorer.view) for explorer in explorers]


@pytest.fixture
def spectra(opened):
    explorer, view = opened[0]
    explorer.view = view
    return explorer


@pytest.fixture
def pair(opened):
    explorer, view = opened[1]
    explorer.view = view
    return explorer


def lines(explorer: SpectrumExplorer) -> dict[str, go.Scatter]:
    """The lines of the upper panel by their entry in the legend."""
    return {trace.name: trace for trace in explorer.spectrum.figure.data if trace.showlegend}


def test_lines_are_the_means_of_the_choice(results, spectra):
    spectra.choose(objective="contrastive", task="OOD · icons · outline", method="NMTune", quantity="cumulative energy",
                   seed=2, ratios=[0.0, 0.3], scale="linear")  # fmt: skip
    key = ("contrastive", "OOD · icons · outline", "NMTune")
    bands = quantity_bands(spectra_by_choice(results.spectra)[key], "cumulative energy", seed=2)
    assert set(lines(spectra)) == {"0 %", "30 %"}
    for name, ratio in (("0 %", 0.0), ("30 %", 0.3)):
        np.testing.assert_allclose(lines(spectra)[name].y, bands.loc[bands["ratio"] == ratio, "mean"])


def test_a_control_moves_the_view_and_the_view_the_control(spectra):
    spectra._controls["between"].value = 0.2
    assert spectra.view["between"] == 0.2
    before = [trace.y for trace in spectra.spectrum.figure.data if trace.line.dash == "dash"]
    spectra.view = {"between": 0.05, "window": [3, 50]}
    after = [trace for trace in spectra.spectrum.figure.data if trace.line.dash == "dash"]
    assert spectra._controls["between"].value == 0.05
    assert [trace.x[0] for trace in after] == [3, 3]
    assert not np.array_equal(before[0], after[0].y)


def test_a_saved_view_reopens(results, spectra, pair):
    spectra.choose(task="ID · icons", ratios=[0.1], between=0.15, direction=7, network=0.3)
    pair.choose(task="OOD · icons", second="10 %", second_method="NMTune", given="home")
    for explorer in (spectra, pair):
        saved = json.loads(json.dumps(explorer.view))
        again = type(explorer)(results)
        again.view = saved
        assert again.view == explorer.view
        assert again.samples.value == explorer.samples.value


def test_choices_that_there_are_not_are_refused_and_nothing_changes(spectra, pair):
    before = dict(spectra.view)
    for wrong, error in (({"task": "ID · cats"}, InvalidInputError), ({"tasks": 1}, UnknownNameError),
                         ({"between": 0.9}, InvalidInputError)):  # fmt: skip
        with pytest.raises(error):
            spectra.view = wrong
    assert spectra.view == before
    pair.choose(task="OOD · icons", given="home")
    before = dict(pair.view)
    for wrong in ({"task": "ID · digits", "given": "home"}, {"task": "ID · digits", "second": "70 %"}):
        with pytest.raises(InvalidInputError, match="among"):
            pair.choose(**wrong)
        assert pair.view == before
        assert pair._choices() == before


def test_the_gallery_shows_the_samples_that_load_most(results, spectra):
    spectra.choose(task="ID · digits", direction=2, network=0.0)
    assert spectra.samples.value.count("<figure") == 8
    assert "of 374" in spectra.samples.value
    test = load_task("digits").select(split="test")
    values = extract_features(test, results.network("supervised", 0.0), progress=False).values.astype(np.float64)
    left, sigma, _ = np.linalg.svd(values, full_matrices=False)
    loading = left[:, 1] * sigma[1] * np.sign(left[:, 1].sum())
    strongest = np.argmax(np.abs(loading))
    first = f">{test.class_names[test.labels[strongest]]} {loading[strongest]:+.2f}</figcaption>"
    assert spectra.samples.value.index(first) < spectra.samples.value.index("</figure>")


def test_of_train_splits_there_are_the_raw_features_of_one_seed(results, spectra):
    spectra.choose(task="OOD · icons · outline", method="NMTune", seed=2)
    spectra.choose(split="train")
    assert (spectra.view["method"], spectra.view["seed"]) == ("LP", "all")
    with pytest.raises(InvalidInputError, match="Expected method among"):
        spectra.choose(method="NMTune")
    features = whole_features(results, "supervised", 0.1, "icons")
    source = features.values[(features.splits == "train") & (features.domains != "outline")]
    sigma = np.linalg.svd(source.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(lines(spectra)["10 %"].y, (sigma / sigma.sum())[: len(lines(spectra)["10 %"].y)])
    spectra.choose(split="test", method="NMTune")
    assert spectra.view["method"] == "NMTune"


def test_the_spectra_of_a_pair_are_those_of_its_task(results, pair):
    pair.choose(objective="contrastive", first="5 %", second="20 %", second_method="MLP", task="OOD · icons")
    sought = {"objective": "contrastive", "protocol": "OOD", "task": "icons"}
    for line, method, ratio in zip(pair.spectra.figure.data, ("LP", "MLP"), (0.05, 0.2), strict=False):
        wanted = pd.Series(sought | {"method": method, "ratio": ratio})
        mine, rows = (table[(table[wanted.index] == wanted).all(axis=1)] for table in (results.spectra, results.rows))
        by_domain = mine.groupby(["test_domain", "index"])["share"].mean().unstack("test_domain")
        np.testing.assert_allclose(
            line.y, by_domain.dropna().mean(axis=1)[: len(line.y)], rtol=1e-6
        )  # stored as float32
        assert f"{rows.loc[rows['metric'] == 'sve', 'value'].mean():.3f}" in pair.spectra.title.value


def test_classes_and_samples_follow_the_task_and_the_class(pair, results):
    pair.choose(objective="supervised", first="0 %", second="30 %", task="OOD · icons", given="credit card")
    answers = comparison.answers_by_result(results.samples)
    first, second = (answers["supervised", noise, "LP"].query("panel == 'OOD · icons'") for noise in ("0 %", "30 %"))
    lost = comparison.changed_samples(first, second)
    classes = pair.cards["given"].figure.data[2]
    label = second.loc[second["correct"], ["label", "prediction"]].drop_duplicates()
    assert (label["label"] == label["prediction"]).all()
    place = list(classes.customdata).index("credit card")
    drawn = classes.x[place]
    named = pair._controls["given"].options.index("credit card") - 1
    assert drawn == pytest.approx(second.query("label == @named")["correct"].mean())
    assert f"{(lost['label'] == named).sum()} samples are right less often" in pair.samples.value


def test_static_twins_are_plain_figures_with_every_choice():
    results = load_results()  # of every task: is a page of it small enough?
    for explorer, fewest in ((SpectrumExplorer, 19), (NoiseComparison, 15)):
        figure = explorer(results).static()
        assert type(figure) is go.Figure
        assert len(figure.layout.updatemenus[0].buttons) >= fewest
        assert len(figure.to_json()) < 3e6


def test_texts_of_data_stay_texts():
    hostile = "<img src=x onerror=alert(1)>"
    page = gallery_html(np.zeros((1, 2, 2, 3), np.uint8), [hostile], hostile)
    assert hostile not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") == 3  # heading, caption, alternative text
