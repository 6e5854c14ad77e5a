"""Figures of the noise gallery: from which class into which, at one ratio or with a slider over ratios."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from nml_kit.errors import InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.plots.figures import confusion_matrix

_SLIDER = 84  # pixels


def transition_matrix(counts: np.ndarray, class_names: Sequence[str], *, title: str) -> go.Figure:
    """Draw which shares of each class (rows) were given which other class (columns); `counts` is (K, K).

    Raises InvalidInputError for what `confusion_matrix` refuses.
    """
    figure = confusion_matrix(counts, class_names, title=title)
    figure.data[1].update(colorbar_title_text="share of own class")
    hover = "own %{y}, given %{x}<br>%{z:.2%} of the own class<extra></extra>"
    figure.update_traces(hovertemplate=hover)
    return figure.update_xaxes(title_text="class given").update_yaxes(title_text="own class")


def transition_page(
    counts: Mapping[float, np.ndarray], titles: Mapping[float, str], class_names: Sequence[str]
) -> go.Figure:
    """Draw `transition_matrix` with a slider over ratios, all in one scale of colour.

    `counts` has a (K, K) matrix and `titles` a sentence for each ratio (fraction). Raises InvalidInputError if there is
    no ratio or the two have different ones, and for what `confusion_matrix` refuses.
    """
    ratios = sorted(counts)
    if not ratios or counts.keys() != titles.keys():
        raise InvalidInputError(f"Expected matrices and titles for the same ratios, got {ratios} and {sorted(titles)}.")
    views = [transition_matrix(counts[ratio], class_names, title=titles[ratio]) for ratio in ratios]
    longest = transition_matrix(counts[ratios[0]], class_names, title=max(titles.values(), key=len))
    page, largest = go.Figure(layout=longest.layout), max(view.data[1].zmax for view in views)
    for view in views:
        view.data[1].update(zmax=largest)
        for trace in view.data:
            page.add_trace(trace.update(z=trace.z.round(4).astype(np.float32), visible=view is views[0]))
    steps = [_step(page, number, ratio, view) for number, (ratio, view) in enumerate(zip(ratios, views, strict=True))]
    page.update_layout(title_text=views[0].layout.title.text)
    return page if len(ratios) == 1 else _with_slider(page, {"steps": steps, "currentvalue": {"prefix": "noise: "}})


def _step(page: go.Figure, number: int, ratio: float, view: go.Figure) -> dict[str, Any]:
    """Show the traces of one view, and its title."""
    made_of = len(view.data)
    visible = [place // made_of == number for place in range(len(page.data))]
    args = [{"visible": visible}, {"title.text": view.layout.title.text}]
    return {"label": ratio_label(ratio), "method": "update", "args": args}


def _with_slider(figure: go.Figure, slider: dict[str, Any]) -> go.Figure:
    """Put a slider above the panel, where axis labels of any length leave it alone; the title keeps its distance."""
    height, top = figure.layout.height, figure.layout.margin.t
    title_top = (1 - figure.layout.title.y) * height
    taller = height + _SLIDER
    figure.update_layout(
        height=taller, margin_t=top + _SLIDER, title_y=1 - title_top / taller, meta={"room": {"t": _SLIDER}}
    )
    return figure.update_layout(sliders=[{**slider, "x": 0, "y": 1, "yanchor": "bottom", "pad": {"b": 6, "t": 0}}])
