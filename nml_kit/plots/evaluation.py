"""Figures of downstream evaluation: accuracy against a share of the train samples or labels, differences by group.

As in `plots`, a tidy DataFrame goes in and a plotly Figure comes out; `title` says what it shows.
"""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import at_ratio, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import (
    INK,
    as_text,
    dodge,
    error_bar,
    finish,
    interval_trace,
    method_marks,
    panel_grid,
    ratio_color,
    ratio_legend,
)

_SHARES = {"fraction": "share of the downstream train samples", "label_noise": "flipped downstream labels"}
_PROTOCOL_MARKS = {"ID": ("#0072B2", "circle"), "OOD": ("#D55E00", "diamond")}


def accuracy_against_share(summary: pd.DataFrame, share: str, *, title: str) -> go.Figure:
    """Draw accuracy against `share` ("fraction" or "label_noise"): a panel per task and protocol, a line per ratio.

    `summary`: one row per task, protocol, ratio and share: those, mean, low, high (fractions); the random-initialised
    backbone (ratio NaN) is left out. Raises InvalidInputError for missing columns.
    """
    require_columns(summary, ["task", "protocol", "ratio", share, "mean", "low", "high"], "accuracy_against_share")
    summary = summary[summary["ratio"].notna()]
    figure, places = panel_grid(summary, _SHARES.get(share, share), "accuracy (fraction)", panel_height=235)
    ratios, shares = ratios_in_order(summary), sorted(summary[share].unique())
    step = 0.012 * (shares[-1] - shares[0])  # keeps intervals at one share apart
    for number, ((row, column), part) in enumerate(places):
        for rank, ratio in enumerate(ratios):
            line = at_ratio(part, ratio).sort_values(share)
            line = line.assign(place=line[share] + step * (rank - (len(ratios) - 1) / 2))
            trace = _ratio_line(line, share, ratio).update(ratio_legend(ratio, shown=number == 0))
            figure.add_trace(trace, row, column)
    figure.update_xaxes(tickvals=shares, ticktext=[ratio_label(value) for value in shares])
    return finish(figure, title, height=figure.layout.height, legend="Noise in pre-training")


def method_lines(summary: pd.DataFrame, share: str, *, title: str) -> go.Figure:
    """Draw accuracy against `share`: a row of panels per protocol, a panel per noise ratio, a line per method.

    `summary`: one row per protocol, ratio, method and share: those, mean, low, high (fractions); the random-initialised
    backbone (ratio NaN) is left out. Raises InvalidInputError for missing columns.
    """
    require_columns(summary, ["protocol", "ratio", "method", share, "mean", "low", "high"], "method_lines")
    summary = summary[summary["ratio"].notna()]
    protocols, ratios = sorted(summary["protocol"].unique()), ratios_in_order(summary)
    marks, shares = method_marks(summary["method"]), sorted(summary[share].unique())
    titles = [f"{as_text(protocol)} · {ratio_label(ratio)}" for protocol in protocols for ratio in ratios]
    spacing = {"vertical_spacing": 0.16, "horizontal_spacing": 0.05, "shared_yaxes": True}
    figure = make_subplots(len(protocols), len(ratios), subplot_titles=titles, **spacing)
    for row, protocol in enumerate(protocols, start=1):
        for column, ratio in enumerate(ratios, start=1):
            part = at_ratio(summary[summary["protocol"] == protocol], ratio)
            for method, mark in marks.items():
                line = part[part["method"] == method].sort_values(share)
                trace = interval_trace(line, share, "mean", method, mark)
                trace.update(mode="lines+markers", showlegend=(row, column) == (1, 1))
                figure.add_trace(trace, row, column)
    figure.update_xaxes(tickvals=shares, ticktext=[ratio_label(value) for value in shares])
    figure.update_xaxes(title_text=_SHARES.get(share, share), row=len(protocols))
    figure.update_yaxes(title_text="accuracy (fraction)", col=1)
    return finish(figure, title, height=60 + 250 * len(protocols), legend="Method")


def variant_effects(differences: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw differences in accuracy with 95 % intervals: a line for each variant, a panel per group, ID and OOD apart.

    `differences`: one row per group, method and protocol: those, mean, low, high (fractions), in the order to show.
    Raises InvalidInputError for missing columns.
    """
    require_columns(differences, ["group", "method", "protocol", "mean", "low", "high"], "variant_effects")
    groups = list(differences["group"].unique())
    names = {group: list(dict.fromkeys(differences.loc[differences["group"] == group, "method"])) for group in groups}
    heights = [len(names[group]) + 1 for group in groups]
    gap = 1.6 / (sum(heights) + 1.6 * len(groups))
    figure = make_subplots(len(groups), 1, shared_xaxes=True, row_heights=heights, vertical_spacing=gap,
                           subplot_titles=[as_text(group) for group in groups])  # fmt: skip
    seen = set[str]()
    for row, group in enumerate(groups, start=1):
        of_group = differences[differences["group"] == group]
        protocols = sorted(of_group["protocol"].unique())
        for protocol in protocols:
            part = of_group[of_group["protocol"] == protocol]
            places = dodge(part["method"], names[group], protocol, protocols)
            figure.add_trace(_effects(part, places, protocol).update(showlegend=protocol not in seen), row, 1)
            seen.add(protocol)
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=row, col=1)
        ticks = [as_text(name) for name in names[group]]
        axis = {"tickvals": list(range(len(ticks))), "ticktext": ticks, "range": [len(ticks) - 0.5, -0.5]}
        figure.update_yaxes(showgrid=False, ticks="", **axis, row=row, col=1)
    figure.update_xaxes(title_text="difference in accuracy (fraction)", row=len(groups))
    return finish(figure, title, height=int(60 + 26 * (sum(heights) + 1.6 * len(groups))), legend="Protocol")


def choice_shares(selections: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw how often each candidate was chosen: a bar per candidate, grouped by method, as a share of all choices.

    `selections`: the columns of `selection_rows`. Raises InvalidInputError for missing columns.
    """
    require_columns(selections, ["method", "candidate", "chosen"], "choice_shares")
    shares = selections.groupby(["method", "candidate"], sort=False)["chosen"].mean()
    figure = go.Figure()
    marks = method_marks(selections["method"])
    for method in dict.fromkeys(selections["method"]):
        part = shares.loc[method]
        labels = [as_text(name) for name in part.index]
        bar = go.Bar(x=part.to_numpy(), y=labels, orientation="h", marker={"color": marks[method][0]})
        figure.add_trace(bar.update(name=as_text(method), hovertemplate="%{y}: %{x:.2f}<extra></extra>"))
    figure.update_yaxes(type="category", autorange="reversed", dtick=1, showgrid=False, ticks="")
    figure.update_xaxes(title_text="share of the folds in which it was chosen", range=[0, 1.02])
    figure.update_layout(bargap=0.25)
    return finish(figure, title, height=90 + 19 * len(shares))


def _ratio_line(line: pd.DataFrame, share: str, ratio: float) -> go.Scatter:
    color = ratio_color(ratio)
    texts = [f"{ratio_label(ratio)}, {_SHARES.get(share, share)}: {ratio_label(value)}" for value in line[share]]
    hover = "%{text}<br>%{customdata[0]:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}]<extra></extra>"
    trace = go.Scatter(x=line["place"], y=line["mean"], text=texts, hovertemplate=hover, mode="lines+markers")
    trace.update(customdata=line[["mean", "low", "high"]], line={"color": color, "width": 2})
    return trace.update(marker={"color": color, "size": 8}, error_y=error_bar(line, color))


def _effects(part: pd.DataFrame, places: list[float], protocol: str) -> go.Scatter:
    color, symbol = _PROTOCOL_MARKS.get(protocol, (ratio_color(math.nan), "square"))
    texts = [f"{as_text(name)}, {as_text(protocol)}" for name in part["method"]]
    hover = "%{text}<br>%{customdata[0]:+.4f} [%{customdata[1]:+.4f}, %{customdata[2]:+.4f}]<extra></extra>"
    points = go.Scatter(x=part["mean"], y=places, text=texts, hovertemplate=hover, mode="markers")
    points.update(customdata=part[["mean", "low", "high"]], error_x=error_bar(part, color))
    settings: dict[str, Any] = {"color": color, "symbol": symbol, "size": 9}
    return points.update(marker=settings, name=as_text(protocol), legendgroup=as_text(protocol))
