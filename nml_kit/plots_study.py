"""Figures of the whole study beside those of `plots`, in the same look: a table in, a Figure out."""

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.look import (
    as_text,
    at_ratio,
    epoch_axis,
    finish,
    panel_names,
    ratio_color,
    ratio_label,
    ratios_in_order,
    require_columns,
)

_DASHES = ("solid", "dash", "dot", "dashdot")


def best_ratio_probabilities(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw how probable it is that each ratio is the best: a row per task and protocol, a column per ratio.

    `table`: one row per task, protocol and ratio: those and probability (fraction; see `best_ratio`). Raises
    InvalidInputError for missing columns.
    """
    require_columns(table, ["task", "protocol", "ratio", "probability"], "best_ratio_probabilities")
    ratios = ratios_in_order(table)
    wide = table.assign(panel=panel_names(table)).pivot_table(index="panel", columns="ratio", values="probability")
    shares = wide[ratios].to_numpy()
    cells = go.Heatmap(z=shares, x=[ratio_label(ratio) for ratio in ratios], y=[as_text(name) for name in wide.index])
    cells.update(
        colorscale="Blues", zmin=0, zmax=1, xgap=2, ygap=2, text=np.round(shares, 2), texttemplate="%{text:.2f}"
    )
    cells.update(hovertemplate="%{y}<br>%{x}: best with probability %{z:.3f}<extra></extra>")
    cells.update(colorbar={"title": {"text": "probability", "side": "right"}, "thickness": 14})
    figure = go.Figure(cells)
    figure.update_xaxes(title_text="noise in pre-training", type="category", showgrid=False, ticks="")
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    return finish(figure, title, height=110 + 34 * len(wide))


def memorisation_curves(curves: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw what pre-training memorises and learns over its epochs: a row of two panels, a dash per variant.

    `curves`: one row per variant (text), ratio, seed and epoch: those, memorised and test_accuracy (fractions; see
    `variants.training_curves`). Lines are means over seeds. Raises InvalidInputError for missing columns.
    """
    columns = ["variant", "ratio", "seed", "epoch", "memorised", "test_accuracy"]
    require_columns(curves, columns, "memorisation_curves")
    panels = {"memorised": "share of the noise memorised", "test_accuracy": "accuracy on clean test images"}
    figure = make_subplots(1, 2, horizontal_spacing=0.1, subplot_titles=list(panels.values()))
    variants = list(curves["variant"].unique())
    for ratio in ratios_in_order(curves):
        for dash, variant in zip(itertools.cycle(_DASHES), variants, strict=False):
            part = at_ratio(curves[curves["variant"] == variant], ratio)
            means = part.groupby("epoch")[list(panels)].mean()
            for column, quantity in enumerate(panels, start=1):
                name = f"{as_text(variant)}, {ratio_label(ratio)}"
                line = go.Scatter(x=means.index, y=means[quantity], mode="lines+markers", name=name, legendgroup=name)
                line.update(line={"color": ratio_color(ratio), "dash": dash, "width": 2}, marker={"size": 6})
                line.update(hovertemplate=f"{name}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>")
                if means[quantity].notna().any():
                    figure.add_trace(line.update(showlegend=quantity == "test_accuracy"), 1, column)
    epoch_axis(figure, int(curves["epoch"].max()))
    figure.update_yaxes(title_text="fraction", col=1)
    # The legend lies below: one entry for each pair of variant and ratio would not fit above.
    figure = finish(figure, title, height=360 + 24 * len(variants))
    below = {"orientation": "v", "x": 0, "xref": "paper", "y": -0.22, "yref": "paper", "yanchor": "top"}
    figure.update_layout(showlegend=True, legend=below | {"title": {"text": ""}})
    return figure
