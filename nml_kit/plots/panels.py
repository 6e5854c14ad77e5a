"""Panels with a trace for each series: what most figures are made of.

The column `panel` of a table names the panel of a row, `series` its trace, a key of the marks. Columns `low` and `high`
are an interval about `mean`, and `text` is for the hover. Plotly express draws such panels too, but all of one height,
and where its `scattermode="group"` moves series apart, axes start at zero (seen with plotly 7.1).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import panel_names, ratio_label, require_columns
from nml_kit.plots.theme import INK, Mark, as_text

NOISE_AXIS, NOISE_LEGEND, ACCURACY = "noise in pre-training", "Noise in pre-training", "accuracy (fraction)"
INTERVAL = "%{fullData.name}, %{text}<br>%{customdata[0]:.4~g} [%{customdata[1]:.4~g}, %{customdata[2]:.4~g}]"
POINT = "%{fullData.name}<br>%{x:.4~g}: %{y:.4~g}"
_ROW_GAP, _BOTTOM = 72, 60  # pixels: between rows of panels, for ticks and titles; below the last
_SPREAD = 0.7  # of the distance between two rows of a forest: over it lie the series of a row

Place = dict[str, int]
Look = dict[str, Any]
Mode = Literal["lines", "markers", "lines+markers"]


def trained(table: pd.DataFrame, columns: list[str], figure: str) -> pd.DataFrame:
    """The rows of trained networks, with their panel: task by task, in the order of ratios, which are the texts."""
    require_columns(table, columns, figure)
    table = table[table["ratio"].notna()]
    require_columns(table, columns, figure)
    table = table.assign(text=table["ratio"].map(ratio_label))
    if {"protocol", "task"} <= set(table):
        table["panel"] = panel_names(table)
    keys = [column for column in ("protocol", "task", "ratio") if column in table]
    return table.sort_values(keys, kind="stable")


def grid(
    titles: Sequence[str], *, columns: int = 2, heights: int | Sequence[int] = 235, shared: bool = False,
    x_title: str = "", y_title: str = "", **more: Any,
) -> tuple[go.Figure, list[Place]]:  # fmt: skip
    """Empty panels under `titles`, and the place of each; `heights` in pixels, of all rows or of each.

    Panels in a row have one vertical axis if that is `shared`. The figure's height is that of all panels.
    """
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    sizes = [heights] * rows if isinstance(heights, int) else list(heights)
    inner = sum(sizes) + _ROW_GAP * (rows - 1)
    spacing: Look = {
        "horizontal_spacing": (0.1 if shared else 0.2) / columns,
        "vertical_spacing": _ROW_GAP / inner if rows > 1 else 0,
    }
    names = [as_text(title) for title in titles]
    cells: list[Look | None] = [*[{}] * len(titles), *[None] * (rows * columns - len(titles))]
    spacing["specs"] = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    figure = make_subplots(
        rows, columns, subplot_titles=names, row_heights=sizes, shared_yaxes=shared, **spacing | more
    )
    figure.update_annotations(font_size=14, yshift=4).update_layout(height=inner + _BOTTOM)
    places = [{"row": number // columns + 1, "col": number % columns + 1} for number in range(len(titles))]
    for place in places[-columns:]:
        figure.update_xaxes(title_text=x_title, **place)
    return figure.update_yaxes(title_text=y_title, col=1), places


def panels(
    table: pd.DataFrame, x: str, y: str, marks: Mapping[str, Mark], layout: Look, **traces: Any
) -> tuple[go.Figure, list[Place]]:
    """Draw the panel of each value of `panel`, in order, by the `layout` of `grid` and the `traces` of `add_series`."""
    parts = {str(name): part for name, part in table.groupby("panel", sort=False)}
    figure, places = grid(list(parts), **Look(y_title=ACCURACY) | layout)
    for place, part in zip(places, parts.values(), strict=True):
        add_series(figure, part, x, y, marks, place, **traces)
    return figure, places


def forest(
    table: pd.DataFrame, marks: Mapping[str, Mark], *, columns: int = 2, shared: bool = True, row_height: int = 0,
    x_title: str = "", **traces: Any,
) -> tuple[go.Figure, list[Place]]:  # fmt: skip
    """Draw intervals along x, a row for each value of `row` in `table`, in their order, with its series apart.

    All panels have the same rows if those are `shared`. A rule stands at the value of `null`, if there is that column.
    """
    parts = {str(name): part for name, part in table.groupby("panel", sort=False)}
    rows = [list(dict.fromkeys((table if shared else part)["row"])) for part in parts.values()]
    columns, step = min(columns, len(parts)), row_height or max(16 * len(marks), 22)
    heights = [step * max(2, *map(len, rows[start : start + columns])) for start in range(0, len(rows), columns)]
    label_room = 0.05 if shared else min(0.25, 0.06 + 0.007 * table["row"].str.len().max())
    layout: Look = {"columns": columns, "shared": shared, "x_title": x_title, "horizontal_spacing": label_room}
    figure, places = grid(list(parts), heights=heights, **layout)
    look: Look = {"mode": "markers", "hover": INTERVAL, "spread": _SPREAD} | traces
    for place, part, names in zip(places, parts.values(), rows, strict=True):
        part = part.assign(**{"text": part["row"].map(as_text)} | dict(part.filter(["text"])))
        add_series(figure, part.assign(place=part["row"].map(names.index)), "mean", "place", marks, place, **look)
        if "null" in part:
            figure.add_vline(x=part["null"].iloc[0], line={"color": INK, "width": 1}, **place)
        row_axis(figure, [as_text(name) for name in names], place)
    return figure.update_xaxes(nticks=6), places


def row_axis(figure: go.Figure, labels: Sequence[str], place: Place | None = None) -> None:
    """Label rows 0, 1, … of a vertical axis, from the top."""
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "range": [len(labels) - 0.5, -0.5]}
    figure.update_yaxes(showgrid=False, ticks="", **ticks, **place or {})


def ratio_axis(figure: go.Figure, ratios: Sequence[float]) -> None:
    figure.update_xaxes(tickvals=list(ratios), ticktext=[ratio_label(ratio) for ratio in ratios])


def add_series(
    figure: go.Figure, table: pd.DataFrame, x: str, y: str, marks: Mapping[str, Mark], place: Place | None = None, *,
    mode: Mode = "lines+markers", hover: str = POINT, interval: Literal["bar", "band"] = "bar", spread: float = 0,
) -> None:  # fmt: skip
    """Add a trace for each series, in the order of `marks`, with its intervals as error bars or as a band.

    Series that lie on each other are moved apart, over `spread` in units of the axis across the intervals.
    """
    names = [name for name in marks if not spread or (table["series"] == name).any()]
    across = y if x == "mean" else x
    for rank, name in enumerate(names):
        part = table[table["series"] == name]
        if spread:
            part = part.assign(**{across: part[across] + spread * ((rank + 0.5) / len(names) - 0.5)})
        trace = line(part[x], part[y], name, marks[name], mode=mode, hover=hover)
        trace.text = part.get("text")
        has_interval = "mean" in (x, y) and {"low", "high"} <= set(part)
        if has_interval and interval == "band":
            figure.add_trace(band(part, x, name, marks[name]), **place or {})
        elif has_interval:
            bar = {"array": part["high"] - part["mean"], "arrayminus": part["mean"] - part["low"], "symmetric": False}
            bar |= {"color": marks[name].color, "thickness": 1.5, "width": 3}
            trace.update({"error_x" if x == "mean" else "error_y": bar}, customdata=part[["mean", "low", "high"]])
        figure.add_trace(trace, **place or {})


def line(x: Any, y: Any, name: str, mark: Mark, *, mode: Mode = "lines", hover: str = POINT) -> go.Scatter:
    """A trace in its mark, under its name in the legend."""
    label, color = as_text(name), mark.color
    trace = go.Scatter(x=np.asarray(x), y=np.asarray(y), mode=mode, name=label, legendgroup=label)
    trace.update(line={"color": color, "dash": mark.dash, "width": mark.width}, hovertemplate=f"{hover}<extra></extra>")
    return trace.update(marker={"color": color, "symbol": mark.symbol, "size": mark.size})


def band(part: pd.DataFrame, x: str, name: str, mark: Mark) -> go.Scatter:
    """The area between the lows and the highs of a series, under its entry of the legend."""
    there_and_back = np.concatenate([part[x], part[x][::-1]])
    edges = np.concatenate([part["high"], part["low"][::-1]])
    area = go.Scatter(x=there_and_back, y=edges, fill="toself", fillcolor=mark.color, opacity=0.18, hoverinfo="skip")
    return area.update(mode="lines", line_width=0, legendgroup=as_text(name), showlegend=False)
