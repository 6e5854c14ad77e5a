"""Figures: a tidy DataFrame goes in, a plotly Figure comes out, in one look for the whole study (see `look`).

Each function takes `title`, the sentence that says what the figure shows; texts that come from data (class
names, captions) are shown as text, never read as markup.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.errors import InvalidInputError
from nml_kit.inference import at_ratio, panel_names, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import (
    INK,
    as_text,
    category_axis,
    dodge,
    error_bar,
    finish,
    interval_trace,
    method_marks,
    panel_grid,
    png_uri,
    ratio_band,
    ratio_color,
    ratio_legend,
    wrap,
)

_SUMMARY = ["task", "protocol", "method", "ratio", "mean", "low", "high"]
_NOISE = "Noise in pre-training"
_NUMERICAL_ZERO = 1e-7  # shares below are rounding of a rank-deficient matrix, and would stretch the axis


def singular_spectrum(spectra: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw singular values σ_i/Σσ on a log scale and their cumulative energy, one line per noise ratio.

    `spectra`: one row per ratio and index (from 1): ratio, index, share, cumulative_energy (fractions); low and
    high, if present, are the band of share over seeds. Raises InvalidInputError for missing columns or repeated rows.
    """
    require_columns(spectra, ["ratio", "index", "share", "cumulative_energy"], "singular_spectrum")
    if spectra.duplicated(["ratio", "index"]).any():
        raise InvalidInputError("Expected one row per ratio and index, got more: average the seeds first.")
    panels = ["Singular values", "Cumulative energy"]
    figure = make_subplots(1, 2, horizontal_spacing=0.11, subplot_titles=panels)
    for ratio in ratios_in_order(spectra):
        part = at_ratio(spectra, ratio).sort_values("index")
        if {"low", "high"} <= set(part):
            low, high = (part[edge].clip(lower=0.1 * _NUMERICAL_ZERO) for edge in ("low", "high"))
            figure.add_trace(ratio_band(part["index"], low, high, ratio), 1, 1)
        for column, quantity in enumerate(["share", "cumulative_energy"], start=1):
            line = go.Scatter(x=part["index"], y=part[quantity], mode="lines")
            line.hovertemplate = f"{ratio_label(ratio)}<br>i = %{{x}}<br>%{{y:.3g}}<extra></extra>"
            dash = "dash" if math.isnan(ratio) else "solid"
            line.update(line={"color": ratio_color(ratio), "width": 2, "dash": dash})
            figure.add_trace(line.update(ratio_legend(ratio, shown=column == 1)), 1, column)
    figure.update_xaxes(title_text="index i").update_xaxes(title_text="index i (log scale)", type="log", col=2)
    seen = spectra["share"][spectra["share"] > _NUMERICAL_ZERO]
    limits = [math.log10(seen.min()) - 0.1, math.log10(seen.max()) + 0.1]
    ticks = {"type": "log", "range": limits, "nticks": 7, "tickformat": "~g"}
    figure.update_yaxes(title_text="σ<sub>i</sub> / Σσ (log scale)", col=1, **ticks)
    figure.update_yaxes(title_text="share of Σσ² in the first i", range=[0, 1.02], col=2)
    return finish(figure, title, height=385, legend=_NOISE)


def metric_against_accuracy(points: pd.DataFrame, metric: str, *, title: str) -> go.Figure:
    """Draw accuracy against `metric` ("sve" or "lsvr"), a data set's ratios joined in order and named at the end.

    Shown first is the change from each data set's lowest ratio, which puts all on one scale; a button shows the values
    themselves. `points`: one row per task, protocol ("ID" | "OOD") and ratio: those, accuracy (fraction) and the metric
    (nats). Raises InvalidInputError for missing columns.
    """
    require_columns(points, ["task", "protocol", "ratio", "accuracy", metric], "metric_against_accuracy")
    points = points.sort_values("ratio")
    first = points.groupby(["protocol", "task"])[[metric, "accuracy"]].transform("first")
    change = points.assign(**(points[[metric, "accuracy"]] - first).where(points["ratio"].notna()))
    change_view = _metric_panels(change, metric, f"{metric.upper()}: change (nats)", "accuracy: change (fraction)")
    value_view = _metric_panels(points, metric, f"{metric.upper()} (nats)", "accuracy (fraction)")
    for view in (change_view, value_view):
        finish(view, title, height=430, legend=_NOISE)
    buttons = [_view_button("Change from clean", change_view), _view_button("Values", value_view)]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "bgcolor": "white"}
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 30}, "font": {"size": 12}}
    return change_view.update_layout(updatemenus=[menu | place])


def accuracy_against_ratio(summary: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw accuracy against the noise ratio: a panel per task and protocol, a line per method, 95 % intervals.

    `summary`: one row per task, protocol, method and ratio: those, mean, low, high (fractions). Rows with ratio
    NaN, the random-initialised backbone, become a dotted line, or only a number where the line would flatten the panel.
    Raises InvalidInputError for missing columns.
    """
    require_columns(summary, _SUMMARY, "accuracy_against_ratio")
    axes = "noise in pre-training", "accuracy (fraction)"
    figure, places = panel_grid(summary, *axes, panel_height=235)
    marks, seen = method_marks(summary["method"]), set[str]()
    ratios = [ratio for ratio in ratios_in_order(summary) if not math.isnan(ratio)]
    step = 0.012 * (max(ratios, default=1) - min(ratios, default=0))  # keeps intervals at one ratio apart
    for (row, column), part in places:
        for rank, method in enumerate(marks):
            line = part[(part["method"] == method) & part["ratio"].notna()].sort_values("ratio")
            line = line.assign(place=line["ratio"] + step * (rank - (len(marks) - 1) / 2))
            trace = interval_trace(line, "place", "mean", method, marks[method])
            trace.update(mode="lines+markers", showlegend=bool(len(line)) and method not in seen)
            figure.add_trace(trace, row, column)
            seen.update([method] if len(line) else [])
        _add_random_line(figure, part, ratios, row, column)
    figure.update_xaxes(tickvals=ratios, ticktext=[ratio_label(ratio) for ratio in ratios])
    return finish(figure, title, height=figure.layout.height, legend="Method")


def method_comparison(summary: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the methods beside each other at each noise ratio: a panel per task and protocol, 95 % intervals.

    `summary`: the columns of `accuracy_against_ratio` (fractions). Rows of the random-initialised backbone (ratio
    NaN) are left out: they would set the scale. Raises InvalidInputError for missing columns.
    """
    require_columns(summary, _SUMMARY, "method_comparison")
    summary = summary[summary["ratio"].notna()]
    marks, ratios, seen = method_marks(summary["method"]), ratios_in_order(summary), set[str]()
    panel_height = max(130, 20 + 20 * len(marks) * len(ratios))
    axes = "accuracy (fraction)", "noise in pre-training"
    figure, places = panel_grid(summary, *axes, panel_height=panel_height)
    for (row, column), part in places:
        for method in marks:
            line = part[part["method"] == method]
            line = line.assign(place=dodge(line["ratio"], ratios, method, list(marks)))
            trace = interval_trace(line, "mean", "place", method, marks[method])
            trace.update(showlegend=bool(len(line)) and method not in seen)
            figure.add_trace(trace, row, column)
            seen.update([method] if len(line) else [])
    category_axis(figure, [ratio_label(ratio) for ratio in ratios])
    return finish(figure, title, height=figure.layout.height, legend="Method")


def method_differences(differences: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw paired differences in accuracy with 95 % intervals: right of zero, the method named first is better.

    `differences`: one row per task, protocol, comparison (such as "NMTune − LP") and ratio: those, mean, low, high
    (fractions). Raises InvalidInputError for missing columns.
    """
    columns = ["task", "protocol", "comparison", "ratio", "mean", "low", "high"]
    require_columns(differences, columns, "method_differences")
    comparisons = list(differences["comparison"].unique())
    tasks = sorted(set(panel_names(differences)))
    titles = [as_text(comparison) for comparison in comparisons]
    spacing = {"shared_yaxes": True, "horizontal_spacing": 0.05}
    figure = make_subplots(1, len(comparisons), subplot_titles=titles, **spacing)
    ratios = ratios_in_order(differences)
    for column, comparison in enumerate(comparisons, start=1):
        for ratio in ratios:
            part = at_ratio(differences[differences["comparison"] == comparison], ratio)
            part = part.assign(place=dodge(panel_names(part), tasks, ratio, ratios))
            trace = _ratio_points(part, "mean", "place", ratio, "%{x:+.4f}")
            trace.update(error_x=error_bar(part, ratio_color(ratio)), showlegend=column == 1)
            figure.add_trace(trace, 1, column)
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
    figure.update_xaxes(title_text="difference in accuracy (fraction)")
    category_axis(figure, [as_text(task) for task in tasks])
    return finish(figure, title, height=120 + 18 * max(len(tasks) * len(ratios), 4), legend=_NOISE)


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], *, title: str) -> go.Figure:
    """Draw a K×K matrix of counts (rows: given class, columns: class that came out) as shares of each row.

    The diagonal, which would drown the rest, is left grey and named on hover. Raises InvalidInputError if the
    matrix is not K×K, finite and ≥ 0, or the K names are not distinct.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    k = len(set(class_names))
    if k < 2 or k != len(class_names) or matrix.shape != (k, k) or not ((matrix >= 0) & (matrix < np.inf)).all():
        raise InvalidInputError(
            f"Expected K ≥ 2 distinct class names and a K×K matrix of counts ≥ 0, got {len(class_names)} names "
            f"({k} distinct) and a matrix of shape {matrix.shape}."
        )
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-300)
    diagonal = np.eye(k, dtype=bool)
    kept = go.Heatmap(z=np.where(diagonal, shares, np.nan), colorscale=[[0, "#d5d8dd"], [1, "#d5d8dd"]])
    largest = shares[~diagonal].max() or 1.0
    moved = go.Heatmap(z=np.where(diagonal, np.nan, shares), colorscale="Blues", zmin=0, zmax=largest)
    bar = {"title": {"text": "share of row", "side": "right", "font": {"size": 13}}, "tickformat": ".2~%"}
    figure = go.Figure([kept.update(showscale=False), moved.update(colorbar={**bar, "thickness": 14})])
    names = [as_text(name) for name in class_names]
    hover = "%{y} → %{x}<br>%{z:.2%} of the row<extra></extra>"
    figure.update_traces(x=names, y=names, hovertemplate=hover, hoverongaps=False, xgap=0.5, ygap=0.5)
    short = [as_text(name if len(name) <= 20 else f"{name[:19]}…") for name in map(str, class_names)]
    ticks = {"tickvals": list(range(k)), "ticktext": short, "tickfont": {"size": 11}, "ticks": ""}
    ticks |= {"type": "category", "showgrid": False, "showticklabels": k <= 40}
    figure.update_xaxes(title_text="class that came out", tickangle=-60 if k > 6 else 0, **ticks)
    figure.update_yaxes(title_text="given class", autorange="reversed", **ticks)
    return finish(figure, title, height=int(np.clip(220 + 16 * k, 380, 760)))


def noise_gallery(images: np.ndarray, titles: Sequence[str], *, title: str) -> go.Figure:
    """Show images with a line under each, such as "cat → dog"; `images` is uint8 (n, height, width, 3).

    Raises InvalidInputError for another shape or dtype, no image, or a number of titles that differs from n.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
        raise InvalidInputError(
            f"Expected uint8 images of shape (n, height, width, 3), n ≥ 1, got {images.dtype} {images.shape}."
        )
    if len(titles) != len(images):
        raise InvalidInputError(f"Expected one title per image, got {len(titles)} for {len(images)} images.")
    columns = min(8, len(images))
    rows = math.ceil(len(images) / columns)
    figure = make_subplots(rows, columns, horizontal_spacing=0.02, vertical_spacing=min(0.4 / rows, 0.3))
    for place, (image, image_title) in enumerate(zip(images, titles, strict=True)):
        caption = wrap(image_title, 17)
        row, column = place // columns + 1, place % columns + 1
        trace = go.Image(source=png_uri(image), hovertemplate=f"{caption}<extra></extra>")
        figure.add_trace(trace, row, column)
        text = {"text": caption, "showarrow": False, "font": {"size": 11}, "yanchor": "top", "yshift": -4}
        figure.add_annotation(x=0.5, y=0, xref="x domain", yref="y domain", row=row, col=column, **text)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    figure.update_layout(margin={"l": 12, "r": 12})
    return finish(figure, title, height=60 + 160 * rows)


def _ratio_points(part: pd.DataFrame, x: str, y: str, ratio: float, value: str) -> go.Scatter:
    symbol = "circle-open" if math.isnan(ratio) else "circle"
    marker = {"color": ratio_color(ratio), "size": 10, "symbol": symbol}
    texts = [as_text(name) for name in panel_names(part)]
    hover = f"%{{text}}<br>{ratio_label(ratio)}<br>{value}<extra></extra>"
    points = go.Scatter(x=part[x], y=part[y], text=texts, mode="markers", marker=marker, hovertemplate=hover)
    return points.update(ratio_legend(ratio, shown=True))


def _metric_panels(points: pd.DataFrame, metric: str, x_title: str, y_title: str) -> go.Figure:
    """One panel per protocol: a grey line per task through its ratios, a coloured marker per ratio."""
    protocols = sorted(points["protocol"].unique())
    figure = make_subplots(1, len(protocols), horizontal_spacing=0.1, subplot_titles=[*map(as_text, protocols)])
    value = f"{metric.upper()} %{{x:.4f}}<br>accuracy %{{y:.4f}}"
    for column, protocol in enumerate(protocols, start=1):
        part = points[points["protocol"] == protocol]
        paths = part[part["ratio"].notna()]
        for _, path in paths.groupby("task"):
            line = go.Scatter(x=path[metric], y=path["accuracy"], mode="lines", line={"width": 2})
            figure.add_trace(line.update(line_color="#c3c7ce", showlegend=False, hoverinfo="skip"), 1, column)
        for ratio in ratios_in_order(points):
            marks = _ratio_points(at_ratio(part, ratio), metric, "accuracy", ratio, value)
            figure.add_trace(marks.update(showlegend=column == 1), 1, column)
        _label_ends(figure, paths, metric, np.ptp(part["accuracy"].dropna()), column)
        low, high = part[metric].min(), part[metric].max()
        room = 0.25 * max(high - low, 1e-9)  # for the names
        figure.update_xaxes(title_text=x_title, range=[low - room, high + room], col=column)
        figure.update_yaxes(title_text=y_title, col=column)
    return figure


def _label_ends(figure: go.Figure, paths: pd.DataFrame, metric: str, span: float, column: int) -> None:
    """Name each task beyond its last ratio, pushed up where two names would cover each other."""
    ends = paths.groupby("task").agg(x=(metric, "last"), start=(metric, "first"), y=("accuracy", "last"))
    lowest_free = -math.inf
    for task, end in ends.sort_values("y").iterrows():
        y = max(end["y"], lowest_free)
        lowest_free = y + 0.055 * span
        side = {"xanchor": "right", "xshift": -9} if end["x"] < end["start"] else {"xanchor": "left", "xshift": 9}
        text = {"text": as_text(task), "showarrow": False, "font": {"size": 12}}
        figure.add_annotation(x=end["x"], y=y, row=1, col=column, **text, **side)


def _view_button(label: str, view: go.Figure) -> dict[str, Any]:
    data = {"x": [trace.x for trace in view.data], "y": [trace.y for trace in view.data]}
    layout: dict[str, Any] = {"annotations": [note.to_plotly_json() for note in view.layout.annotations]}
    for axis in [*view.select_xaxes(), *view.select_yaxes()]:
        layout[f"{axis.plotly_name}.title.text"] = axis.title.text
        layout[f"{axis.plotly_name}.range"] = axis.range
        layout[f"{axis.plotly_name}.autorange"] = axis.range is None
    return {"label": label, "method": "update", "args": [data, layout]}


def _add_random_line(figure: go.Figure, part: pd.DataFrame, ratios: list[float], row: int, column: int) -> None:
    """Name the best random-initialised result in the panel's title; draw it only if it leaves the lines their room."""
    trained, random = part[part["ratio"].notna()], part[part["ratio"].isna()]
    if random.empty or trained.empty:
        return
    value, low, high = random["mean"].max(), trained["low"].min(), trained["high"].max()
    place = next(iter(figure.select_xaxes(row=row, col=column))).plotly_name.removeprefix("xaxis") or "1"
    heading = figure.layout.annotations[int(place) - 1]
    grey = ratio_color(math.nan)
    heading.text += f'  <span style="font-size:12px;color:{grey}">random init {value:.3f}</span>'
    if low - (high - low) <= value <= high + (high - low):
        line = go.Scatter(x=[ratios[0], ratios[-1]], y=[value, value], mode="lines", hoverinfo="skip")
        figure.add_trace(line.update(line={"color": grey, "dash": "dot"}, showlegend=False), row, column)
