"""Matrices cell by cell, and images side by side. Each figure's title says what it shows."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8
from PIL import Image
from plotly.subplots import make_subplots

from nml_kit.errors import InvalidInputError
from nml_kit.inference import panel_names, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.controls import add_control
from nml_kit.plots.forest import MOST_CLASSES
from nml_kit.plots.panels import NOISE_AXIS
from nml_kit.plots.theme import BLUE, ORANGE, as_text, finish, wrap

Counts = Int[np.ndarray, "k k"] | Float[np.ndarray, "k k"]


def confusion_matrix(matrix: Counts, class_names: Sequence[str], *, title: str) -> go.Figure:
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
    names, hover = [as_text(name) for name in class_names], "%{y} → %{x}<br>%{z:.2%} of the row"
    grey = {"colorscale": [[0, "#d5d8dd"], [1, "#d5d8dd"]], "showscale": False}
    figure = go.Figure(_cells(np.where(diagonal, shares, np.nan), names, names, hover, **grey))
    largest = shares[~diagonal].max() or 1.0
    moved = _cells(np.where(diagonal, np.nan, shares), names, names, hover, zmin=0, zmax=largest)
    figure.add_trace(moved.update(colorbar={**_bar("share of row"), "tickformat": ".2~%"}))
    short = [as_text(name, 20) for name in class_names]
    ticks = {"tickvals": list(range(k)), "ticktext": short, "showticklabels": k <= 40}
    _class_axes(figure, "class that came out", "given class", tickangle=-60 if k > 6 else 0, **ticks)
    return finish(figure, title, height=int(np.clip(220 + 16 * k, 380, 760)))


def transition_matrix(counts: Counts, class_names: Sequence[str], *, title: str) -> go.Figure:
    """Draw which shares of each class (rows) were given which other class (columns); `counts` is (K, K).

    Raises InvalidInputError for what `confusion_matrix` refuses.
    """
    figure = confusion_matrix(counts, class_names, title=title)
    figure.data[1].update(colorbar_title_text="share of own class")
    hover = "own %{y}, given %{x}<br>%{z:.2%} of the own class<extra></extra>"
    figure.update_traces(hovertemplate=hover)
    return figure.update_xaxes(title_text="class given").update_yaxes(title_text="own class")


def transition_page(matrices: Mapping[float, tuple[Counts, str]], class_names: Sequence[str]) -> go.Figure:
    """Draw `transition_matrix` with a slider over ratios, all in one scale of colour.

    `matrices` has a (K, K) matrix of counts and a title for each ratio (fraction), at least one. Raises
    InvalidInputError for what `confusion_matrix` refuses.
    """
    views = {
        ratio_label(ratio): transition_matrix(counts, class_names, title=title)
        for ratio, (counts, title) in sorted(matrices.items())
    }
    for view in views.values():
        view.data[1].zmax = max(other.data[1].zmax for other in views.values())
    first = next(iter(views.values()))
    page = go.Figure(max(views.values(), key=lambda view: view.layout.margin.t))  # has room for every title
    page.update(data=first.data).update_layout(title=first.layout.title)
    return add_control(page, views, "slider") if len(views) > 1 else page


def confusion_changes(change: Float[np.ndarray, "k k"], class_names: Sequence[str], *, title: str) -> go.Figure:
    """Draw how the share of each class (row) taken for another (column) changes, for the classes that change most.

    `change` is K×K (fractions), see `confusion_change`; the diagonal, which the other figures show, is left out.
    """
    off = np.where(np.eye(len(change), dtype=bool), 0.0, np.asarray(change, dtype=np.float64))
    weight = np.abs(off).sum(axis=0) + np.abs(off).sum(axis=1)
    kept = np.sort(np.argsort(-weight, kind="stable")[:MOST_CLASSES])
    names, limit = [as_text(class_names[place]) for place in kept], max(np.abs(off).max(), 1e-9)
    hover = "%{y} taken for %{x}<br>%{z:+.1%} of the class"
    heat = _cells(off[np.ix_(kept, kept)], names, names, hover, zmid=0, zmin=-limit, zmax=limit)
    heat.update(colorscale=[[0, BLUE], [0.5, "#f7f7f7"], [1, ORANGE]])
    figure = go.Figure(heat.update(colorbar={**_bar("change"), "tickformat": "+.0%"}))
    _class_axes(figure, "taken for", "class", tickangle=-60)
    return finish(figure, title, height=210 + 17 * len(kept))


def best_ratio_probabilities(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw how probable it is that each ratio is the best: a row per task and protocol, a column per ratio.

    `table`: one row per task, protocol and ratio: those and probability (fraction; see `best_ratio`).
    """
    require_columns(table, ["task", "protocol", "ratio", "probability"], "best_ratio_probabilities")
    ratios = ratios_in_order(table)
    wide = table.assign(panel=panel_names(table)).pivot_table(index="panel", columns="ratio", values="probability")
    hover = "%{y}<br>%{x}: best with probability %{z:.3f}"
    names = [as_text(name) for name in wide.index]
    cells = _cells(wide[ratios].to_numpy(), [*map(ratio_label, ratios)], names, hover, zmin=0, zmax=1)
    figure = go.Figure(cells.update(texttemplate="%{z:.2f}", colorbar=_bar("probability")))
    _class_axes(figure, NOISE_AXIS, "")
    return finish(figure, title, height=110 + 34 * len(wide))


def noise_gallery(images: UInt8[np.ndarray, "n h w 3"], titles: Sequence[str], *, title: str) -> go.Figure:
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
    for number, (image, image_title) in enumerate(zip(images, titles, strict=True)):
        caption, place = wrap(image_title, 17), {"row": number // columns + 1, "col": number % columns + 1}
        figure.add_trace(go.Image(source=png_uri(image), hovertemplate=f"{caption}<extra></extra>"), **place)
        text = {"text": caption, "showarrow": False, "font": {"size": 11}, "yanchor": "top", "yshift": -4}
        figure.add_annotation(x=0.5, y=0, xref="x domain", yref="y domain", **text, **place)
    figure.update_xaxes(visible=False).update_yaxes(visible=False).update_layout(margin={"l": 12, "r": 12})
    return finish(figure, title, height=60 + 160 * rows)


def png_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """An image as a `data:` address, for HTML and plotly."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cells(z: Float[np.ndarray, "n m"], x: list[str], y: list[str], hover: str, **look: Any) -> go.Heatmap:
    heat = go.Heatmap(z=z, x=x, y=y, xgap=1, ygap=1, hoverongaps=False, colorscale="Blues")
    return heat.update(hovertemplate=f"{hover}<extra></extra>", **look)


def _bar(name: str) -> dict[str, Any]:
    return {"title": {"text": name, "side": "right", "font": {"size": 13}}, "thickness": 14}


def _class_axes(figure: go.Figure, x_title: str, y_title: str, *, tickangle: int = 0, **ticks: Any) -> None:
    axis = {"type": "category", "showgrid": False, "ticks": "", "tickfont": {"size": 11}, **ticks}
    figure.update_xaxes(title_text=x_title, tickangle=tickangle, **axis)
    figure.update_yaxes(title_text=y_title, autorange="reversed", **axis)
