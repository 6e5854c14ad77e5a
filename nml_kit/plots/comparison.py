"""Figures of two results side by side, for widgets and pages alike: a table in, a plotly Figure out, in one look."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import require_columns
from nml_kit.plots.theme import INK, METHOD_MARKS, as_text, category_axis, finish
from nml_kit.study import largest_changes

_LOSS, _GAIN = METHOD_MARKS["NMTune"][0], METHOD_MARKS["LP"][0]  # orange and blue: told apart by everyone
MOST_CLASSES, _ROW_HEIGHT = 20, 24  # classes shown; pixels
_QUIET = "#8a8f98"
_NOTHING = 1e-3  # of the largest share: a quotient of less says nothing


def paired_accuracies(changes: pd.DataFrame, names: tuple[str, str], *, chosen: str = "", title: str) -> go.Figure:
    """Draw the accuracies of two results on each row as two joined dots: open, the first; full, the second.

    `changes`: name (text), first, second (fractions), drawn top to bottom; `names` of the two; `chosen` is bold.
    Raises InvalidInputError for missing columns.
    """
    require_columns(changes, ["name", "first", "second"], "paired_accuracies")
    figure = go.Figure(_pairs(changes, names))
    category_axis(figure, _row_texts(changes, chosen))
    figure.update_xaxes(title_text="accuracy (fraction)", nticks=6)
    return finish(figure, title, height=110 + _ROW_HEIGHT * max(len(changes), 4), legend=" ")


def confusion_changes(change: np.ndarray, class_names: Sequence[str], *, title: str) -> go.Figure:
    """Draw how the share of each class (row) taken for another (column) changes, for the classes that change most.

    `change` is K×K (fractions), see `confusion_change`; the diagonal, which the other figures show, is left out.
    """
    off = np.where(np.eye(len(change), dtype=bool), 0.0, np.asarray(change, dtype=np.float64))
    weight = np.abs(off).sum(axis=0) + np.abs(off).sum(axis=1)
    kept = np.sort(np.argsort(-weight, kind="stable")[:MOST_CLASSES])
    names = [as_text(class_names[place]) for place in kept]
    part, limit = off[np.ix_(kept, kept)], max(np.abs(off).max(), 1e-9)
    heat = go.Heatmap(z=part, x=names, y=names, zmid=0, zmin=-limit, zmax=limit, xgap=1, ygap=1)
    heat.update(colorscale=[[0, _GAIN], [0.5, "#f7f7f7"], [1, _LOSS]])
    heat.update(hovertemplate="%{y} taken for %{x}<br>%{z:+.1%} of the class<extra></extra>")
    heat.update(colorbar={"tickformat": "+.0%", "thickness": 12, "title": {"text": "change", "side": "right"}})
    figure = go.Figure(heat)
    ticks = {"type": "category", "showgrid": False, "ticks": "", "tickfont": {"size": 11, "color": INK}}
    figure.update_xaxes(title_text="taken for", tickangle=-60, **ticks)
    figure.update_yaxes(title_text="class", autorange="reversed", **ticks)
    return finish(figure, title, height=210 + 17 * len(kept))


def paired_spectra(first: pd.Series, second: pd.Series, names: tuple[str, str], *, title: str) -> go.Figure:
    """Draw two spectra (shares σ_i/Σσ by index, from 1) on logarithmic axes, and below the change from the first."""
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06)
    looks = ({"color": _QUIET, "dash": "dash", "width": 2}, {"color": INK, "width": 2})
    for spectrum, name, look in zip((first, second), names, looks, strict=True):
        hover = f"{as_text(name)}<br>i = %{{x}}: %{{y:.4g}}<extra></extra>"
        line = go.Scatter(
            x=spectrum.index, y=spectrum, mode="lines", line=look, name=as_text(name), hovertemplate=hover
        )
        figure.add_trace(line, 1, 1)
    change = (second / first - 1)[first > _NOTHING * first.max()]
    hover = "i = %{x}: %{y:+.1%}<extra></extra>"
    figure.add_scatter(x=change.index, y=change, mode="lines", line=looks[1], showlegend=False, hovertemplate=hover,
                       row=2, col=1)  # fmt: skip
    figure.add_hline(y=0, line=looks[0], row=2, col=1)
    figure.update_xaxes(type="log", dtick=1).update_xaxes(title_text="index i (log scale)", row=2)
    figure.update_yaxes(type="log", tickformat="~g", nticks=6, title_text="σ<sub>i</sub> / Σσ", row=1)
    figure.update_yaxes(tickformat="+~%", nticks=5, title_text="change", row=2)
    return finish(figure, title, height=400, legend=" ")


def comparison_page(pairs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], *, title: str) -> go.Figure:
    """Draw tasks (left) and classes (right) of pairs of results as joined dots, with a menu of the pairs.

    `pairs`: a name (text) and the changes of tasks and of classes, as `paired_accuracies` takes them; the classes that
    change most are shown. Raises InvalidInputError for missing columns.
    """
    views = {name: _page_view(*tables) for name, tables in pairs.items()}
    figure = go.Figure(next(iter(views.values())))
    figure.update_xaxes(title_text="accuracy (fraction)", nticks=5)
    buttons = [_pair_button(name, view) for name, view in views.items()]
    finish(figure, title, height=110 + _ROW_HEIGHT * MOST_CLASSES, legend=" ")
    menu = {"buttons": buttons, "bgcolor": "white", "font": {"size": 12}, "x": 1, "xanchor": "right"}
    return figure.update_layout(updatemenus=[{**menu, "y": 1, "yanchor": "bottom", "pad": {"b": 30}}])


def _page_view(tasks: pd.DataFrame, classes: pd.DataFrame) -> go.Figure:
    figure = make_subplots(1, 2, horizontal_spacing=0.2, subplot_titles=["Tasks", "Classes of the chosen task"])
    for column, table in enumerate((tasks, largest_changes(classes, MOST_CLASSES)), start=1):
        for trace in _pairs(table, ("first", "second")):
            figure.add_trace(trace.update(showlegend=column == 1 and trace.mode == "markers"), 1, column)
        labels = {"tickvals": [*range(len(table))], "ticktext": _row_texts(table, "")}
        figure.update_yaxes(showgrid=False, ticks="", range=[len(table) - 0.5, -0.5], col=column, **labels)
    return figure


def _pair_button(name: str, view: go.Figure) -> dict[str, Any]:
    data: dict[str, Any] = {
        axis: [[None if np.isnan(value) else round(float(value), 4) for value in trace[axis]] for trace in view.data]
        for axis in ("x", "y")
    }
    data["text"] = [trace.text for trace in view.data]
    data["marker.color"] = [trace.marker.color for trace in view.data]
    axes = {"yaxis": view.layout.yaxis, "yaxis2": view.layout.yaxis2}
    layout = {
        f"{key}.{part}": list(axis[part]) for key, axis in axes.items() for part in ("tickvals", "ticktext", "range")
    }
    return {"label": as_text(name), "method": "update", "args": [data, layout]}


def _pairs(changes: pd.DataFrame, names: tuple[str, str]) -> list[go.Scatter]:
    rows, change = np.arange(len(changes)), changes["second"] - changes["first"]
    joined = np.column_stack([changes["first"], changes["second"], np.full(len(changes), np.nan)]).ravel()
    line = go.Scatter(x=joined, y=np.repeat(rows, 3), mode="lines", line={"color": "#c3c7ce", "width": 3})
    traces = [line.update(hoverinfo="skip", showlegend=False)]
    texts = [f"{as_text(name)}<br>{value:+.3f}" for name, value in zip(changes["name"], change, strict=True)]
    for name, column, symbol in zip(names, ("first", "second"), ("circle-open", "circle"), strict=True):
        dots = go.Scatter(x=changes[column], y=rows, mode="markers", name=as_text(name), text=texts)
        dots.update(
            customdata=changes["name"], hovertemplate=f"%{{text}}<br>{as_text(name)}: %{{x:.3f}}<extra></extra>"
        )
        colors = [_LOSS if value < 0 else _GAIN for value in change]
        traces.append(dots.update(marker={"color": colors, "symbol": symbol, "size": 11, "line": {"width": 2}}))
    return traces


def _row_texts(changes: pd.DataFrame, chosen: str) -> list[str]:
    short = {name: as_text(name if len(name) <= 24 else f"{name[:23]}…") for name in map(str, changes["name"])}
    return [f"<b>{text}</b>" if name == chosen else text for name, text in short.items()]
