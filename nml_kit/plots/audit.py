"""The figure of an audit: anyone's spectrum among those of known noise."""

import pandas as pd
import plotly.graph_objects as go

from nml_kit.inference import at_ratio, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import INK, as_text, finish, ratio_color, ratio_legend

_SMALLEST = 1e-4  # of the largest: what lies below carries nothing, and would stretch the axis


def spectrum_among_known(curve: pd.DataFrame, known: pd.DataFrame, *, name: str, title: str) -> go.Figure:
    """Draw a spectrum over those of networks whose noise is known, each stretched to its own number of directions.

    `curve`: position ((i − ½)/r, from 0 to 1), height (r·σ_i/Σσ, 1 for a flat spectrum); `known`: those and ratio.
    Raises InvalidInputError for missing columns.
    """
    require_columns(curve, ["position", "height"], "spectrum_among_known")
    require_columns(known, ["ratio", "position", "height"], "spectrum_among_known")
    figure = go.Figure()
    for ratio in ratios_in_order(known):
        part = at_ratio(known, ratio)
        look = {"color": ratio_color(ratio), "width": 1.5}
        figure.add_trace(_line(part, look, ratio_label(ratio), **ratio_legend(ratio, shown=True)))
    figure.add_trace(_line(curve, {"color": INK, "width": 3}, name, name=as_text(name)))
    figure.update_xaxes(title_text="share of the directions (log scale)", type="log", tickformat="~%", dtick=1)
    figure.update_yaxes(title_text="σ<sub>i</sub> over their mean (log scale)", type="log", tickformat="~g", nticks=7)
    return finish(figure, title, height=380, legend="Noise in pre-training (our networks, icons)")


def _line(part: pd.DataFrame, look: dict[str, object], label: str, **legend: object) -> go.Scatter:
    part = part[part["height"] > _SMALLEST * part["height"].max()]
    hover = f"{as_text(label)}<br>at %{{x:.1%}}: %{{y:.3g}}<extra></extra>"
    return go.Scatter(x=part["position"], y=part["height"], mode="lines", line=look, hovertemplate=hover, **legend)
