"""Figures of the whole study beside those of `plots`, in the same look: a table in, a Figure out."""

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import at_ratio, panel_names, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import as_text, category_axis, dodge, epoch_axis, error_bar, finish, method_marks, ratio_color

_STYLES = (("solid", "circle"), ("dash", "square"), ("dot", "diamond"), ("dashdot", "x"))  # of lines and markers


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
    """Draw what pre-training memorises and learns over its epochs: a row of two panels, a dash and a mark per variant.

    `curves`: one row per variant (text), ratio, seed and epoch: those, memorised and test_accuracy (fractions; see
    `variants.training_curves`). Lines are means over seeds. Raises InvalidInputError for missing columns.
    """
    columns = ["variant", "ratio", "seed", "epoch", "memorised", "test_accuracy"]
    require_columns(curves, columns, "memorisation_curves")
    panels = {"memorised": "share of the noise memorised", "test_accuracy": "accuracy on clean test images"}
    figure = make_subplots(1, 2, horizontal_spacing=0.1, subplot_titles=list(panels.values()))
    variants = list(curves["variant"].unique())
    for ratio in ratios_in_order(curves):
        for (dash, symbol), variant in zip(itertools.cycle(_STYLES), variants, strict=False):
            part = at_ratio(curves[curves["variant"] == variant], ratio)
            means = part.groupby("epoch")[list(panels)].mean()
            for column, quantity in enumerate(panels, start=1):
                name = f"{as_text(variant)}, {ratio_label(ratio)}"
                line = go.Scatter(x=means.index, y=means[quantity], mode="lines+markers", name=name, legendgroup=name)
                line.update(line={"color": ratio_color(ratio), "dash": dash, "width": 2})
                line.update(marker={"size": 7, "symbol": symbol})
                line.update(hovertemplate=f"{name}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>")
                if means[quantity].notna().any():
                    figure.add_trace(line.update(showlegend=quantity == "test_accuracy"), 1, column)
    epoch_axis(figure, int(curves["epoch"].max()))
    figure.update_yaxes(title_text="fraction", col=1)
    # The legend lies below: one entry for each pair of variant and ratio would not fit above.
    figure = finish(figure, title, height=330 + 20 * len(variants) * len(ratios_in_order(curves)))
    below = {"orientation": "v", "x": 0, "xref": "paper", "y": -0.22, "yref": "paper", "yanchor": "top"}
    figure.update_layout(showlegend=True, legend=below | {"title": {"text": ""}})
    return figure


def method_costs(costs: pd.DataFrame, *, title: str, x_title: str) -> go.Figure:
    """Draw what methods cost on a log scale: a panel per step, a row per task, a mark per method.

    `costs`: one row per task, method and step: those, median, low, high (above 0, smallest and largest repeat), all of
    one quantity, which `x_title` names. Raises InvalidInputError for missing columns.
    """
    require_columns(costs, ["task", "method", "step", "median", "low", "high"], "method_costs")
    steps, tasks = list(costs["step"].unique()), list(costs["task"].unique())
    marks = method_marks(costs["method"])
    spacing = {"shared_yaxes": True, "horizontal_spacing": 0.05}
    figure = make_subplots(1, len(steps), subplot_titles=[as_text(step) for step in steps], **spacing)
    for column, step in enumerate(steps, start=1):
        for method, (color, symbol) in marks.items():
            part = costs[(costs["step"] == step) & (costs["method"] == method)].rename(columns={"median": "mean"})
            dots = go.Scatter(x=part["mean"], y=dodge(part["task"], tasks, method, list(marks)), mode="markers")
            dots.update(marker={"color": color, "symbol": symbol, "size": 9}, error_x=error_bar(part, color))
            dots.update(name=as_text(method), legendgroup=as_text(method), showlegend=column == 1)
            dots.update(text=part["task"].map(as_text), customdata=part[["low", "high"]])
            dots.update(hovertemplate="%{text}<br>%{x:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]<extra></extra>")
            figure.add_trace(dots, 1, column)
    category_axis(figure, [as_text(task) for task in tasks])
    figure.update_xaxes(title_text=f"{x_title} (log scale)", type="log", dtick="D2", tickformat="~g")
    return finish(figure, title, height=110 + max(16 * len(marks), 22) * max(len(tasks), 3), legend="Method")
