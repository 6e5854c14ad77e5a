"""What holds for every figure: missing columns are named, texts of data stay texts, titles have their room."""

import json

import plotly.graph_objects as go
import pytest

from nml_kit import plots
from nml_kit.errors import InvalidInputError
from tests.plots import tables
from tests.plots.tables import HOSTILE

FIGURES = {
    "accuracy_against_ratio": (tables.summary, {}),
    "accuracy_against_share": (tables.by_share, {"share": "fraction"}),
    "best_ratio_probabilities": (tables.probabilities, {}),
    "changes_by_variant": (tables.changes, {"legend": "Kind"}),
    "choice_shares": (tables.selections, {}),
    "memorisation_curves": (tables.curves, {}),
    "method_comparison": (tables.summary, {}),
    "method_costs": (tables.costs, {"x_title": "seconds"}),
    "method_differences": (tables.differences, {}),
    "method_lines": (tables.by_share, {"share": "fraction"}),
    "metric_against_accuracy": (tables.points, {"metric": "sve"}),
    "metric_against_size": (tables.sizes, {}),
    "metric_by_choice": (tables.choices, {}),
    "metrics_against_ratio": (tables.values, {}),
    "results_against_ratio": (tables.series_results, {"y_title": "share", "legend": "Series"}),
    "pretraining_curves": (lambda: tables.curves().query("variant == 'as the profile'"), {}),
    "singular_spectrum": (lambda: tables.spectra().drop(columns=["low", "high"]), {}),
    "spectra_atlas": (tables.atlas, {}),
    "variant_effects": (tables.effects, {}),
}
UNUSED = {"accuracy_against_share": {"method"}, "method_lines": {"task"}, "pretraining_curves": {"variant"},
          "memorisation_curves": {"loss"}, "method_differences": {"method"}}  # fmt: skip


def draw(name: str, table, title: str) -> go.Figure:
    return getattr(plots, name)(table, title=title, **FIGURES[name][1])


@pytest.mark.parametrize("name", FIGURES)
def test_missing_columns_are_listed_and_empty_tables_refused(name):
    table = FIGURES[name][0]()
    for column in set(table) - UNUSED.get(name, set()):
        with pytest.raises(InvalidInputError, match=rf"{name} expected the columns .*missing: {column} \(got: "):
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
    shown = [draw(name, tables.summary(), "t") for name in ("accuracy_against_ratio", "method_comparison")]
    texts = {axis.title.text for figure in shown for axis in (*figure.select_xaxes(), *figure.select_yaxes())}
    assert texts - {None, ""} == {"noise in pre-training", "accuracy (fraction)"}
