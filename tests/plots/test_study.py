"""Figures of spectra and of the study: what they draw, in which order, and what they refuse."""

import numpy as np
import pandas as pd
import pytest

from nml_kit.errors import InvalidInputError
from nml_kit.plots import spectra as plots_spectra
from nml_kit.plots import study as plots_study
from nml_kit.plots.theme import ratio_color
from nml_kit.spectrum import family_spectra, family_table

RATIOS = (0.0, 0.1, 0.3)
HOSTILE = "<img src=x onerror=alert(1)>"


def grid(**columns) -> pd.DataFrame:
    return pd.MultiIndex.from_product(columns.values(), names=list(columns)).to_frame(index=False)


def with_bands(frame: pd.DataFrame) -> pd.DataFrame:
    mean = 1.0 + np.arange(len(frame))
    return frame.assign(mean=mean, low=mean - 0.5, high=mean + 0.5)


def values() -> pd.DataFrame:
    frame = grid(metric=["sve", "lsvr", HOSTILE], ratio=RATIOS, seed=[0, 1])
    return frame.assign(value=np.arange(len(frame)) / 7)


def choices() -> pd.DataFrame:
    return with_bands(grid(metric=["sve", "lsvr"], choice=["test", HOSTILE], ratio=RATIOS))


def sizes() -> pd.DataFrame:
    return with_bands(grid(metric=["sve", "lsvr"], ratio=RATIOS, n=[400, 100, 200]))


def atlas() -> pd.DataFrame:
    frame = grid(panel=["ID · icons", HOSTILE], ratio=RATIOS, index=np.arange(1, 6))
    return frame.assign(share=1 / frame["index"] ** 2)


def changes() -> pd.DataFrame:
    return with_bands(grid(quantity=["SVE (nats)", "accuracy"], panel=["ID · icons", HOSTILE], variant=["a", HOSTILE]))


def probabilities() -> pd.DataFrame:
    frame = grid(task=["icons", HOSTILE], protocol=["ID", "OOD"], ratio=RATIOS)
    return frame.assign(probability=np.tile([0.2, 0.5, 0.3], 4))


def method_costs() -> pd.DataFrame:
    frame = with_bands(grid(task=["icons", HOSTILE], method=["LP", "NMTune"], step=["fit", "predict"]))
    return frame.rename(columns={"mean": "median"})


FIGURES = [
    (plots_spectra.metrics_against_ratio, values, ["metric", "ratio", "seed", "value"], {}),
    (plots_spectra.metric_by_choice, choices, ["metric", "choice", "ratio", "mean", "low", "high"], {}),
    (plots_spectra.metric_against_size, sizes, ["metric", "ratio", "n", "mean", "low", "high"], {}),
    (plots_spectra.spectra_atlas, atlas, ["panel", "ratio", "index", "share"], {}),
    (plots_spectra.changes_by_variant, changes, ["quantity", "panel", "variant", "mean", "low", "high"],
     {"legend": "Kind"}),
    (plots_study.method_costs, method_costs, ["task", "method", "step", "median", "low", "high"],
     {"x_title": "seconds"}),
    (plots_study.best_ratio_probabilities, probabilities, ["task", "protocol", "ratio", "probability"], {}),
]  # fmt: skip


@pytest.mark.parametrize(("draw", "make", "columns", "more"), FIGURES)
def test_missing_columns_are_listed_and_texts_are_never_markup(draw, make, columns, more):
    frame = make()
    for column in columns:
        with pytest.raises(InvalidInputError, match=rf"missing: {column} \(got: "):
            draw(frame.drop(columns=column), title="t", **more)
    with pytest.raises(InvalidInputError, match="got an empty table"):
        draw(frame.iloc[:0], title="t", **more)
    figure = draw(frame, title=HOSTILE, **more)
    assert HOSTILE not in figure.to_json().encode().decode("unicode_escape")
    assert figure.layout.template.layout.font.size == 13


@pytest.mark.parametrize(("draw", "make", "columns", "more"), FIGURES)
def test_titles_of_panels_have_their_room_below_the_title(draw, make, columns, more):
    """Above lie the title (from 12 pixels, 25 a line), a legend row if there is one, and the panels' titles."""
    figure = draw(make(), title="t", **more)
    panel_titles = [note for note in figure.layout.annotations if note.y == 1 and note.yref == "paper"]
    rows = 1 + bool(figure.layout.showlegend)
    above = 12 + 25 * rows + max((note.font.size + 4 for note in panel_titles), default=0)
    assert figure.layout.margin.t >= above
    assert all(note.font.size <= 14 for note in panel_titles)


def test_one_variant_needs_no_legend_but_the_room_of_panel_titles():
    some = changes().query("variant == 'a'")
    figure = plots_spectra.changes_by_variant(some, title="t", legend="Kind")
    plain = plots_study.best_ratio_probabilities(probabilities(), title="t")
    assert figure.layout.margin.t == plain.layout.margin.t + 24


@pytest.mark.parametrize("epochs", [2, 8, 30])
def test_epochs_are_whole_numbers_and_few(epochs):
    curves = grid(variant=["a", HOSTILE], ratio=RATIOS, seed=[0], epoch=range(1, epochs + 1))
    curves = curves.assign(memorised=0.1, test_accuracy=0.5)
    figure = plots_study.memorisation_curves(curves, title="t")
    assert {title.text for title in figure.layout.annotations} == {
        "share of the noise memorised", "accuracy on clean test images"
    }  # fmt: skip
    for axis in figure.select_xaxes():
        assert axis.dtick == int(axis.dtick) >= 1
        assert 2 <= epochs // axis.dtick <= 7


def test_metrics_show_each_seed_and_the_mean():
    figure = plots_spectra.metrics_against_ratio(values(), title="t")
    sve = values().query("metric == 'sve'")
    assert list(figure.data[0].y) == sve.query("seed == 0")["value"].tolist()
    assert list(figure.data[2].y) == pytest.approx(sve.groupby("ratio")["value"].mean().tolist())
    assert len(figure.data) == 9


def test_choices_join_their_lowest_and_highest_ratio():
    figure = plots_spectra.metric_by_choice(choices(), title="t")
    part = choices().query("metric == 'sve' and choice == 'test'")["mean"]
    assert list(figure.data[0].x) == [part.min(), part.max()]
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert names == ["0 %", "10 %", "30 %"]


def test_sizes_are_in_order_whatever_the_order_of_the_rows():
    figure = plots_spectra.metric_against_size(sizes(), title="t")
    line = figure.data[1]
    assert (list(line.x), list(line.y)) == ([100, 200, 400], [2.0, 3.0, 1.0])
    assert line.line.color == ratio_color(0.0)


def test_atlas_has_a_panel_per_name_and_one_scale():
    figure = plots_spectra.spectra_atlas(atlas(), title="t")
    assert len(figure.data) == 6
    assert figure.layout.annotations[0].text == "ID · icons"
    assert len({axis.range for axis in figure.select_yaxes()}) == 1


def test_variants_are_dodged_about_their_row():
    figure = plots_spectra.changes_by_variant(changes(), title="t", legend="Kind")
    rows = [np.round(trace.y).tolist() for trace in figure.data]
    assert all(row == [1.0, 0.0] or row == [0.0, 1.0] for row in rows)
    one = plots_spectra.changes_by_variant(changes().query("variant == 'a'"), title="t", legend="Kind")
    assert not one.layout.showlegend


def test_plane_bounds_the_points_by_the_families():
    points = pd.DataFrame({"ratio": RATIOS, "lsvr": [1.0, 1.1, 1.2], "sve": [2.0, 2.1, 2.2]})
    measured = atlas().query("panel == 'ID · icons'")
    figure = plots_spectra.sve_lsvr_plane(family_table(16), family_spectra(1.0, 16), points, measured, title="t")
    assert [trace.name for trace in figure.data if trace.showlegend][:3] == family_table(16)["family"].unique().tolist()
    markers = [trace for trace in figure.data if trace.mode == "markers"]
    assert [float(trace.y[0]) for trace in markers] == [2.0, 2.1, 2.2]
    with pytest.raises(InvalidInputError, match="missing: sve"):
        plots_spectra.sve_lsvr_plane(family_table(16), family_spectra(1.0, 16), points.drop(columns="sve"), measured,
                                     title="t")  # fmt: skip


def test_probabilities_are_cells_in_the_order_of_the_ratios():
    figure = plots_study.best_ratio_probabilities(probabilities().sample(frac=1, random_state=0), title="t")
    assert list(figure.data[0].x) == ["0 %", "10 %", "30 %"]
    assert np.asarray(figure.data[0].z).tolist() == [[0.2, 0.5, 0.3]] * 4


def test_costs_have_a_panel_per_step_and_a_place_per_task_and_method():
    frame = method_costs()
    figure = plots_study.method_costs(frame, title="t", x_title="seconds")
    assert [note.text for note in figure.layout.annotations] == ["fit", "predict"]
    assert [trace.name for trace in figure.data] == ["LP", "NMTune"] * 2
    for trace, (step, method) in zip(figure.data, [(s, m) for s in ("fit", "predict") for m in ("LP", "NMTune")],
                                     strict=True):  # fmt: skip
        part = frame[(frame["step"] == step) & (frame["method"] == method)]
        assert list(trace.x) == part["median"].tolist()
        np.testing.assert_allclose(trace.x + trace.error_x.array, part["high"])
        np.testing.assert_allclose(trace.x - trace.error_x.arrayminus, part["low"])
        assert [round(place) for place in trace.y] == [0, 1]
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"


@pytest.mark.parametrize(("epochs", "step"), [(1, 1), (2, 1), (24, 4)])
def test_memorisation_has_whole_epochs_on_its_axis(epochs, step):
    frame = grid(variant=["as the profile", HOSTILE], ratio=[0.0, 0.3], seed=[0, 1], epoch=np.arange(1, epochs + 1))
    frame = frame.assign(memorised=np.where(frame["ratio"] > 0, 0.2, np.nan), test_accuracy=0.5)
    figure = plots_study.memorisation_curves(frame, title="t")
    assert {axis.dtick for axis in figure.select_xaxes()} == {step}
    assert {axis.tick0 for axis in figure.select_xaxes()} == {0}
    styles = {(trace.line.dash, trace.marker.symbol) for trace in figure.data}
    assert len(styles) == len({dash for dash, _ in styles}) == len({symbol for _, symbol in styles}) == 2
