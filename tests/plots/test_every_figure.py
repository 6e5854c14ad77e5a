"""What holds for every figure: missing columns are named, texts of data stay texts, titles have their room."""

import json

import plotly.graph_objects as go
import pytest

from nml_kit import plots
from nml_kit.errors import InvalidInputError
from tests.plots import tables
from tests.plots.tables import HOSTILE

# Of a figure: the table, the options, and those columns of the table that it does not need.
FIGURES = {
    "accuracy_lines": (tables.summary, {}, set()),
    "accuracy_lines by ratio": (tables.by_share, {"x": "fraction", "series": "ratio"}, {"method"}),
    "accuracy_lines by method": (
        lambda: tables.by_share().drop(columns="task"),
        {"x": "fraction", "panel": ("protocol", "ratio")},
        set(),
    ),
    "best_ratio_probabilities": (tables.probabilities, {}, set()),
    "choice_shares": (tables.selections, {}, set()),
    "forest_plot of variants": (tables.effects, {**tables.VARIANTS, "columns": 1, "height": 26}, set()),
    "forest_plot of methods": (tables.differences, tables.DIFFERENCES, {"method"}),
    "forest_plot of changes": (tables.changes, {**tables.CHANGES, "legend": "Kind", "x_title": ""}, set()),
    "forest_plot of choices": (tables.choices, {**tables.CHOICES, "null": None, "x_title": "", "height": 40}, set()),
    "method_comparison": (tables.summary, {}, set()),
    "metric_against_accuracy": (tables.points, {"metric": "sve"}, set()),
    "metric_against_size": (tables.sizes, {}, set()),
    "metrics_against_ratio": (tables.values, {}, set()),
    "results_against_ratio": (tables.series_results, {"y_title": "share", "legend": "Series"}, set()),
    "pretraining_curves": (lambda: tables.curves().drop(columns="variant"), {}, {"loss"}),
    "pretraining_curves of variants": (tables.curves, {}, {"variant", "loss"}),
    "singular_spectrum": (lambda: tables.spectra().drop(columns=["low", "high"]), {}, set()),
    "spectra_atlas": (tables.atlas, {}, set()),
}


def draw(name: str, table, title: str) -> go.Figure:
    return getattr(plots, name.split()[0])(table, title=title, **FIGURES[name][1])


@pytest.mark.parametrize("name", FIGURES)
def test_missing_columns_are_listed_and_empty_tables_refused(name):
    table, called = FIGURES[name][0](), name.split()[0]
    for column in set(table) - FIGURES[name][2]:
        with pytest.raises(InvalidInputError, match=rf"{called} expected the columns .*missing: {column} \(got: "):
            draw(name, table.drop(columns=column), "t")
    with pytest.raises(InvalidInputError, match="at least one row, got an empty table"):
        draw(name, table.iloc[:0], "t")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_plain_serialisable_and_show_data_as_text(name):
    table = FIGURES[name][0]()
    for column in {"task", "method", "comparison", "panel", "group"} & set(table):
        table[column] = table[column].replace(table[column].iloc[0], HOSTILE)
    figure = draw(name, table, f"Finding about {HOSTILE}")
    assert type(figure) is go.Figure
    text = json.dumps(json.loads(figure.to_json()))
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert figure.layout.template.layout.plot_bgcolor == "white"


@pytest.mark.parametrize("name", FIGURES)
def test_titles_of_panels_have_their_room_below_the_title(name):
    """Above lie the title (from 12 pixels, 25 a line), a legend row if there is one, and the panels' titles."""
    figure = draw(name, FIGURES[name][0](), "t")
    panel_titles = [note for note in figure.layout.annotations if note.y == 1 and note.yref == "paper"]
    has_legend_above = figure.layout.showlegend and figure.layout.legend.yref != "paper"
    above = 12 + 25 * (1 + has_legend_above) + max((note.font.size + 4 for note in panel_titles), default=0)
    assert figure.layout.margin.t >= above
    assert all(note.font.size <= 14 for note in panel_titles)
    assert len({trace.name for trace in figure.data if trace.showlegend}) == len(tables.in_legend(figure))


def test_a_long_title_is_wrapped_and_given_room():
    short, long = (
        draw("singular_spectrum", tables.spectra(), title) for title in ("Rises", "SVE rises with noise " * 12)
    )
    lines = long.layout.title.text.split("<br>")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 90
    assert long.layout.height - short.layout.height == long.layout.margin.t - short.layout.margin.t == 50


def test_noise_is_named_alike_whether_of_labels_or_captions():
    shown = [draw(name, tables.summary(), "t") for name in ("accuracy_lines", "method_comparison")]
    texts = {axis.title.text for figure in shown for axis in (*figure.select_xaxes(), *figure.select_yaxes())}
    assert texts - {None, ""} == {"noise in pre-training", "accuracy (fraction)"}
