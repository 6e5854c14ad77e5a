"""Figures of the whole study beside those of `plots`, in the same look: a table in, a Figure out."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit.look import as_text, finish, panel_names, ratio_label, ratios_in_order, require_columns


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
