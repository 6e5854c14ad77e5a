"""Panels with a trace for each series: what most figures are made of.

Columns of a table say where a row is drawn: `panel`, `row` (of a forest) and `series` (see `with_roles`). Columns `low`
and `high` are an interval about `mean`, and `text` is for the hover. Plotly express draws such panels too, but all of
one height, and where its `scattermode="group"` moves series apart, axes start at zero (seen with plotly 7.1).
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import INK, OTHER_MARKS, Mark, Marks, as_text, method_marks, metric_name, ratio_marks

NOISE_AXIS, NOISE_LEGEND, ACCURACY = "noise in pre-training", "Noise in pre-training", "accuracy (fraction)"
LEGENDS = {"ratio": NOISE_LEGEND, "method": "Method", "protocol": "Protocol"}
INTERVAL = "mean", "low", "high"
PANEL = "protocol", "task"
_ROW_GAP, _BOTTOM = 72, 60  # pixels: between rows of panels, for ticks and titles; below the last

Role = str | tuple[str, ...]  # a column or several
Axes = tuple[str, str]
Place = dict[str, int]
WHOLE: Place = {}  # the place in a figure without panels


class Style(NamedTuple):
    """How series are drawn: the mode of their traces, what a hover says, intervals as error bars or as a band.

    Series that lie on each other are moved apart, over `spread` in units of the axis across the intervals.
    """

    mode: Literal["lines", "markers", "lines+markers"] = "lines+markers"
    hover: str = "%{fullData.name}<br>%{x:.4~g}: %{y:.4~g}"
    interval: Literal["bar", "band"] = "bar"
    spread: float = 0


POINTS, LINES = Style(), Style("lines")
INTERVALS = Style(
    hover="%{fullData.name}, %{text}<br>%{customdata[0]:.4~g} [%{customdata[1]:.4~g}, %{customdata[2]:.4~g}]"
)
FOREST = INTERVALS._replace(mode="markers", spread=0.7)  # of the distance between two rows


def trained(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of trained networks, sorted: task by task, in the order of ratios and shares."""
    keys = [name for name in (*PANEL, "ratio", "fraction", "label_noise") if name in table]
    return table.dropna(subset=[name for name in keys if name == "ratio"]).sort_values(keys, kind="stable")


def with_roles(
    table: pd.DataFrame, figure: str, *values: str, series: str = "ratio", **roles: Role
) -> tuple[pd.DataFrame, Marks]:
    """Fill `series`, and the `roles` panel, row or text, from other columns, several of them as "ID · icons".

    Returns the table and the marks of its series. InvalidInputError, in the name of `figure`, if a column is missing.
    """
    columns = {role: names if isinstance(names, tuple) else (names,) for role, names in roles.items()}
    columns["series"] = (series,)
    require_columns(table, [*chain.from_iterable(columns.values()), *values], figure)
    marks = ratio_marks(ratios_in_order(table)) if series == "ratio" else OTHER_MARKS.get(series)
    texts = {role: _texts(table, names) for role, names in columns.items()}
    return table.assign(**texts), marks or method_marks(table[series])


def _texts(table: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    in_words: dict[str, Callable[[Any], str]] = {"metric": metric_name, "seed": "seed {}".format}
    in_words |= dict.fromkeys(("ratio", "fraction", "label_noise"), ratio_label)
    columns = (map(in_words.get(name, str), table[name]) for name in names)
    return [" · ".join(parts) for parts in zip(*columns, strict=True)]


def grid(
    titles: Sequence[str], columns: int = 2, heights: int | list[int] = 235, axes: Axes = ("", ""), **more: Any
) -> tuple[go.Figure, list[Place]]:
    """Empty panels under `titles`, and the place of each; `heights` in pixels, of all rows or of each.

    `axes` are the titles of the lowest horizontal and the leftmost vertical ones; `more` goes to `make_subplots`. The
    figure's height is that of all panels.
    """
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    sizes = [heights] * rows if isinstance(heights, int) else heights
    inner = sum(sizes) + _ROW_GAP * (rows - 1)
    cells: list[dict[str, Any] | None] = [*[{}] * len(titles), *[None] * (rows * columns - len(titles))]
    spacing = {
        "horizontal_spacing": (0.1 if "shared_yaxes" in more else 0.2) / columns,
        "vertical_spacing": _ROW_GAP / inner if rows > 1 else 0,
        "specs": [cells[start : start + columns] for start in range(0, len(cells), columns)],
        "subplot_titles": [as_text(title) for title in titles],
    }
    figure = make_subplots(rows, columns, row_heights=sizes, **spacing | more)
    figure.update_annotations(font_size=14, yshift=4).update_layout(height=inner + _BOTTOM)
    places = [{"row": number // columns + 1, "col": number % columns + 1} for number in range(len(titles))]
    for place in places[-columns:]:
        figure.update_xaxes(title_text=axes[0], **place)
    return figure.update_yaxes(title_text=axes[1], col=1), places


def draw(
    table: pd.DataFrame, x: str, y: str, marks: Marks, style: Style = POINTS, **layout: Any
) -> tuple[go.Figure, list[Place]]:
    """Draw the panel of each value of `panel`, in order, by the `layout` of `grid`."""
    parts = {str(name): part for name, part in table.groupby("panel", sort=False, observed=True)}
    figure, places = grid(list(parts), **layout)
    for place, part in zip(places, parts.values(), strict=True):
        add_series(figure, part, x, y, marks, style, place)
    return figure, places


def forest(
    table: pd.DataFrame, marks: Marks, *, columns: int = 4, height: int = 0, x_title: str = "", style: Style = FOREST
) -> tuple[go.Figure, list[Place]]:
    """Draw intervals along x, a row for each value of `row` in `table`, in their order, with its series apart.

    Up to four panels stand side by side and have the same rows; with fewer `columns` each has its own. `height` is a
    row's in pixels. A rule stands at the value of `null`, if there is that column.
    """
    parts = {str(name): part for name, part in table.groupby("panel", sort=False)}
    more: dict[str, Any] = {"shared_yaxes": True, "horizontal_spacing": 0.05}
    if columns < 4:
        more = {"horizontal_spacing": min(0.25, 0.06 + 0.007 * table["row"].str.len().max())}
    rows = [list(dict.fromkeys((part if columns < 4 else table)["row"])) for part in parts.values()]
    columns, height = min(columns, len(parts)), height or max(16 * len(marks), 22)
    heights = [height * max(2, *map(len, rows[start : start + columns])) for start in range(0, len(rows), columns)]
    figure, places = grid(list(parts), columns, heights, (x_title, ""), **more)
    for place, part, names in zip(places, parts.values(), rows, strict=True):
        text = part.get("text", part["row"].map(as_text))
        placed = part.assign(text=text, place=part["row"].map(names.index))
        add_series(figure, placed, "mean", "place", marks, style, place)
        if "null" in part:
            figure.add_vline(x=part["null"].iloc[0], line={"color": INK, "width": 1}, **place)
        row_axis(figure, [as_text(name) for name in names], place)
    return figure.update_xaxes(nticks=6), places


def row_axis(figure: go.Figure, labels: Sequence[str], place: Place = WHOLE) -> None:
    """Label rows 0, 1, … of a vertical axis, from the top."""
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "range": [len(labels) - 0.5, -0.5]}
    figure.update_yaxes(showgrid=False, ticks="", **ticks, **place)


def ratio_axis(figure: go.Figure, ratios: Sequence[float]) -> go.Figure:
    return figure.update_xaxes(tickvals=list(ratios), ticktext=[ratio_label(ratio) for ratio in ratios])


def add_series(
    figure: go.Figure, table: pd.DataFrame, x: str, y: str, marks: Marks, style: Style = POINTS, place: Place = WHOLE
) -> None:
    """Add a trace for each series, in the order of `marks`, with its interval."""
    names = [name for name in marks if not style.spread or (table["series"] == name).any()]
    across = y if x == "mean" else x
    for rank, name in enumerate(names):
        part, mark = table[table["series"] == name], marks[name]
        if style.spread:
            part = part.assign(**{across: part[across] + style.spread * ((rank + 0.5) / len(names) - 0.5)})
        trace = line(part[x], part[y], name, mark, style).update(text=part.get("text"))
        has_interval = "mean" in (x, y) and {"low", "high"} <= set(part)
        if has_interval and style.interval == "band":
            figure.add_trace(_band(part, x, name, mark), **place)
        elif has_interval:
            bar = {"array": part["high"] - part["mean"], "arrayminus": part["mean"] - part["low"], "symmetric": False}
            bar |= {"color": mark.color, "thickness": 1.5, "width": 3}
            trace.update({"error_x" if x == "mean" else "error_y": bar}, customdata=part[list(INTERVAL)])
        figure.add_trace(trace, **place)


def line(x: Any, y: Any, name: str, mark: Mark, style: Style = LINES) -> go.Scatter:
    """A trace in its mark, under its name in the legend."""
    label, color = as_text(name), mark.color
    look = {
        "line": {"color": color, "dash": mark.dash, "width": mark.width},
        "marker": {"color": color, "symbol": mark.symbol, "size": mark.size},
        "hovertemplate": f"{style.hover}<extra></extra>",
    }
    # All at once: plotly's `update` takes several times as long.
    return go.Scatter(x=np.asarray(x), y=np.asarray(y), mode=style.mode, name=label, legendgroup=label, **look)


def _band(part: pd.DataFrame, x: str, name: str, mark: Mark) -> go.Scatter:
    """The area between the lows and the highs of a series, under its entry of the legend."""
    there_and_back = np.concatenate([part[x], part[x][::-1]])
    edges = np.concatenate([part["high"], part["low"][::-1]])
    look = {"fill": "toself", "fillcolor": mark.color, "opacity": 0.18, "line": {"width": 0}, "mode": "lines"}
    hidden = {"hoverinfo": "skip", "showlegend": False, "legendgroup": as_text(name)}
    return go.Scatter(x=there_and_back, y=edges, **look, **hidden)
