"""Figures of the playground: accuracy and spectra of heads fitted alike, and what λ does to them."""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import require_columns
from nml_kit.plots.theme import as_text, error_bar, finish, method_marks

_SMALLEST = 1e-4  # of the largest share: what lies below carries nothing, and would stretch the axis


def head_accuracy(scores: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the accuracy of heads with 95 % intervals, a panel per protocol.

    `scores`: one row per protocol and method: those, mean, low, high (fractions). Raises InvalidInputError for missing
    columns.
    """
    require_columns(scores, ["protocol", "method", "mean", "low", "high"], "head_accuracy")
    protocols, marks = list(scores["protocol"].unique()), method_marks(scores["method"])
    figure = make_subplots(
        1, len(protocols), shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=[*map(as_text, protocols)]
    )
    for column, protocol in enumerate(protocols, start=1):
        for method, (color, symbol) in marks.items():
            part = scores[(scores["protocol"] == protocol) & (scores["method"] == method)]
            dots = go.Scatter(x=part["mean"], y=[as_text(method)] * len(part), mode="markers+text")
            dots.update(marker={"color": color, "symbol": symbol, "size": 11}, error_x=error_bar(part, color))
            dots.update(text=part["mean"].map("{:.3f}".format), textposition="top center", textfont_size=12)
            dots.hovertemplate = "%{y}: %{x:.4f}<extra></extra>"
            figure.add_trace(dots, 1, column)
    figure.update_xaxes(title_text="accuracy (fraction)", nticks=4)
    room = {"range": [len(marks) - 0.5, -0.8]}  # the first row's number stands above its mark
    figure.update_yaxes(type="category", showgrid=False, ticks="", **room)
    return finish(figure, title, height=100 + 52 * len(marks))


def head_spectra(spectra: pd.DataFrame, metrics: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the singular values σ_i/Σσ of what each head's classifier reads, its SVE and LSVR in the legend.

    `spectra`: method, index (from 1), share (fraction); `metrics`: method, sve, lsvr (nats). Raises InvalidInputError
    for missing columns.
    """
    require_columns(spectra, ["method", "index", "share"], "head_spectra")
    require_columns(metrics, ["method", "sve", "lsvr"], "head_spectra")
    figure, of_method = go.Figure(), metrics.set_index("method")
    for method, (color, _) in method_marks(spectra["method"]).items():
        part = spectra[spectra["method"] == method]
        part = part[part["share"] > _SMALLEST * spectra["share"].max()]
        sve, lsvr = of_method.loc[method, ["sve", "lsvr"]]
        line = go.Scatter(x=part["index"], y=part["share"], mode="lines", line={"color": color, "width": 2})
        line.update(name=f"{as_text(method)}: SVE {sve:.3f}, LSVR {lsvr:.3f}")
        line.hovertemplate = f"{as_text(method)}<br>i = %{{x}}: %{{y:.4g}}<extra></extra>"
        figure.add_trace(line)
    figure.update_xaxes(title_text="index i (log scale)", type="log", dtick=1)
    figure.update_yaxes(title_text="σ<sub>i</sub> / Σσ (log scale)", type="log", tickformat="~g", nticks=7)
    return finish(figure, title, height=330, legend="Head")


def weight_page(grid: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw each quantity against λ, a line per term set, LP and MLP dashed; buttons give the change from MLP.

    `grid` (see `weight_grid`): method, weight (NaN for LP and MLP), quantity, value. Raises InvalidInputError for
    missing columns.
    """
    require_columns(grid, ["method", "weight", "quantity", "value"], "weight_page")
    quantities, marks = list(grid["quantity"].unique()), method_marks(grid["method"])
    figure = make_subplots(1, len(quantities), horizontal_spacing=0.09, subplot_titles=[*map(as_text, quantities)])
    ends = [grid["weight"].min(), grid["weight"].max()]
    for column, quantity in enumerate(quantities, start=1):
        for method, (color, symbol) in marks.items():
            part = grid[(grid["quantity"] == quantity) & (grid["method"] == method)].sort_values("weight")
            is_baseline = part["weight"].isna().all()
            x, y = (ends, [*part["value"]] * 2) if is_baseline else (part["weight"], part["value"])
            line = go.Scatter(x=list(x), y=list(y), mode="lines" if is_baseline else "lines+markers")
            line.update(line={"color": color, "width": 2, "dash": "dash" if is_baseline else "solid"})
            line.update(marker={"symbol": symbol, "size": 8}, name=as_text(method), legendgroup=as_text(method))
            line.hovertemplate = f"{as_text(method)}<br>λ = %{{x:~g}}: %{{y:.4f}}<extra></extra>"
            figure.add_trace(line.update(showlegend=column == 1), 1, column)
    figure.update_xaxes(title_text="λ (log scale)", type="log", dtick=1, tickformat="~g")
    finish(figure, title, height=360, legend="Terms")
    menu = {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"}
    buttons = [_button("Values", figure, {}), _button("Change from MLP", figure, _levels(figure, "MLP"))]
    figure.update_layout(updatemenus=[{**menu, "buttons": buttons, "bgcolor": "white", "font": {"size": 12}}])
    return figure.update_layout(height=figure.layout.height + 50, margin_b=110, meta={"room": {"b": 50}})


def _levels(figure: go.Figure, method: str) -> dict[str | None, float]:
    """The level of a baseline in each panel, by the panel's axis."""
    return {line.yaxis: float(line.y[0]) for line in figure.data if line.name == method}


def _button(label: str, figure: go.Figure, levels: dict[str | None, float]) -> dict[str, Any]:
    moved = [[value - levels.get(line.yaxis, 0.0) for value in line.y] for line in figure.data]
    rounded = [[round(value, 6) if math.isfinite(value) else None for value in line] for line in moved]
    return {"label": label, "method": "restyle", "args": [{"y": rounded}]}
