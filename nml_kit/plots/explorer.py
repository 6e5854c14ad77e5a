"""Figures of the spectrum explorer, for widgets and pages alike: a table in, a plotly Figure out, in one look."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import at_ratio, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import INK, as_text, finish, ratio_band, ratio_color, ratio_legend

Scale = Literal["linear", "log y", "log–log"]
_NOISE = "Noise in pre-training"
_AXES: dict[str, tuple[str, str]] = {
    "linear": ("linear", "linear"),
    "log y": ("linear", "log"),
    "log–log": ("log", "log"),
}
_LABELS = {"share": "σ<sub>i</sub> / Σσ", "singular value": "σ<sub>i</sub>",
           "cumulative energy": "share of Σσ² in the first i"}  # fmt: skip
_SMALLEST = 1e-4  # of the highest value: what lies below carries nothing, and would stretch a log axis


def spectrum_view(
    bands: pd.DataFrame, between: pd.DataFrame, *, quantity: str, scale: Scale, window: Sequence[int], title: str
) -> go.Figure:
    """Draw a quantity of the singular values against their index (above) and its change from clean (below).

    `bands` (see `quantity_bands`): ratio, index, mean, low, high, change; `between`: index, mean, change, a dashed line
    for a ratio between measured ones; `window`: the first and the last index shown. Raises InvalidInputError for
    missing columns.
    """
    require_columns(bands, ["ratio", "index", "mean", "low", "high", "change"], "spectrum_view")
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06)
    first, last = window
    bands, between = (table[table["index"].between(first, last)] for table in (bands, between))
    for ratio in ratios_in_order(bands):
        part = _drawn(at_ratio(bands, ratio))
        figure.add_trace(ratio_band(part["index"], part["low"], part["high"], ratio), 1, 1)
        figure.add_trace(_line(part["index"], part["mean"], ratio, "%{y:.4g}", shown=True), 1, 1)
        if not math.isnan(ratio):  # far away, it would set the scale
            figure.add_trace(_line(part["index"], part["change"], ratio, "%{y:+.1%} of clean"), 2, 1)
    between = _drawn(between)
    for row, column in ((1, "mean"), (2, "change")):
        look = {"mode": "lines", "line": {"color": INK, "dash": "dash", "width": 2}, "showlegend": False}
        figure.add_trace(go.Scatter(x=between["index"], y=between[column], hoverinfo="skip", **look), row, 1)
    x_type, y_type = _AXES[scale]
    figure.update_xaxes(type=x_type, dtick=1 if x_type == "log" and last >= 20 * first else None)
    figure.update_xaxes(title_text="index i" + " (log scale)" * (x_type == "log"), row=2)
    figure.update_yaxes(type=y_type, title_text=_LABELS[quantity], nticks=7, row=1)
    if y_type == "log":
        figure.update_yaxes(tickformat="~g", row=1)
    figure.update_yaxes(title_text="change from clean", tickformat="+~%", nticks=6, row=2)
    figure.update_layout(uirevision=f"{quantity}, {scale}, {first} to {last}")  # zoomed, it stays so as lines move
    return finish(figure, title, height=480, legend=_NOISE)


def spectral_finding(means: pd.DataFrame) -> str:
    """What SVE and LSVR do from the lowest to the highest ratio; `means`: ratio, sve, lsvr (nats), without NaN ratios.

    >>> spectral_finding(pd.DataFrame({"ratio": [0.0, 0.3], "sve": [3.0, 3.5], "lsvr": [2.0, 1.9]}))
    'SVE 3.000 → 3.500, LSVR 2.000 → 1.900'
    """
    ordered = means.sort_values("ratio")
    first, last = ordered.iloc[0], ordered.iloc[-1]
    changes = (f"{name.upper()} {first[name]:.3f} → {last[name]:.3f}" for name in ("sve", "lsvr"))
    return ", ".join(changes)


def spectral_plane(points: pd.DataFrame, between: pd.DataFrame) -> go.Figure:
    """Draw SVE against LSVR: a small dot per seed, a large one for the mean of a ratio, the path joining the ratios.

    `points`: ratio, seed, sve, lsvr (nats); `between`: sve, lsvr of a ratio between measured ones, an open diamond.
    Raises InvalidInputError for missing columns.
    """
    require_columns(points, ["ratio", "seed", "sve", "lsvr"], "spectral_plane")
    means = points.groupby("ratio")[["lsvr", "sve"]].mean().reset_index()
    figure = go.Figure(go.Scatter(x=means["lsvr"], y=means["sve"], mode="lines", line={"color": "#c3c7ce", "width": 2}))
    figure.update_traces(showlegend=False, hoverinfo="skip")
    for ratio in ratios_in_order(means):
        seeds, mean = at_ratio(points, ratio), at_ratio(means, ratio)
        hover = f"{ratio_label(ratio)}<br>LSVR %{{x:.3f}}<br>SVE %{{y:.3f}}<extra></extra>"
        for part, size, opacity in ((seeds, 6, 0.5), (mean, 13, 1)):
            look = {"mode": "markers", "marker": {"color": ratio_color(ratio), "size": size}, "opacity": opacity}
            legend = ratio_legend(ratio, shown=False)
            figure.add_trace(go.Scatter(x=part["lsvr"], y=part["sve"], hovertemplate=hover, **look, **legend))
    diamond = {"symbol": "diamond-open", "size": 19, "color": INK, "line": {"width": 2}}
    look = {"mode": "markers", "marker": diamond, "showlegend": False, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=between["lsvr"], y=between["sve"], **look))
    figure.update_xaxes(title_text="LSVR (nats)", nticks=5).update_yaxes(title_text="SVE (nats)", nticks=6)
    ends = " to ".join(ratio_label(means["ratio"].agg(end)) for end in ("min", "max"))
    return finish(figure, f"SVE and LSVR from {ends} noise", height=480)


def spectrum_page(bands: pd.DataFrame, points: pd.DataFrame, *, quantity: str, title: str) -> go.Figure:
    """Draw spectra and their change from clean, a column per method, with a menu of tasks, a slider over ratios.

    `bands`: panel, method, ratio, index, mean, low, high, change; `points`: panel, method, ratio, sve, lsvr (nats),
    means over seeds. Raises InvalidInputError for missing columns.
    """
    require_columns(bands, ["panel", "method", "ratio", "index", "mean", "low", "high", "change"], "spectrum_page")
    require_columns(points, ["panel", "method", "ratio", "sve", "lsvr"], "spectrum_page")
    methods, ratios = list(bands["method"].unique()), ratios_in_order(bands)
    views = {str(panel): _page_view(part, points[points["panel"] == panel], methods, ratios)
             for panel, part in bands.groupby("panel")}  # fmt: skip
    figure = go.Figure(next(iter(views.values())))
    figure.update_xaxes(type="log", dtick=1).update_xaxes(title_text="index i (log scale)", row=2)
    figure.update_yaxes(type="log", tickformat="~g", nticks=7, row=1)
    figure.update_yaxes(title_text=_LABELS[quantity], row=1, col=1)
    figure.update_yaxes(tickformat="+~%", nticks=6, row=2)
    figure.update_yaxes(title_text="change from clean", row=2, col=1)
    finish(figure, title, height=560, legend=_NOISE)
    tasks = [_task_button(panel, view) for panel, view in views.items()]
    scales = [{"label": f"{name} scale", "method": "relayout",
               "args": [{f"yaxis{n + 1 if n else ''}.type": name for n in range(len(methods))}]}
              for name in ("log", "linear")]  # fmt: skip
    menu = {"bgcolor": "white", "yanchor": "top", "font": {"size": 12}, "pad": {"t": 0}, "y": -0.13}
    figure.update_layout(updatemenus=[
        {**menu, "buttons": tasks, "x": 0, "xanchor": "left"},
        {**menu, "buttons": scales, "x": 1, "xanchor": "right", "type": "buttons", "direction": "right"},
    ])  # fmt: skip
    steps = [_highlight(figure, None), *(_highlight(figure, ratio) for ratio in ratios)]
    slider = {"steps": steps, "y": -0.2, "yanchor": "top", "currentvalue": {"prefix": "shown strongly: "}}
    figure.update_layout(sliders=[slider], margin={"b": 190, "r": 40}, height=figure.layout.height + 130)
    return figure.update_layout(meta={"room": {"b": 130}})


def _page_view(bands: pd.DataFrame, points: pd.DataFrame, methods: list[str], ratios: list[float]) -> go.Figure:
    """All panels of a task, with the same traces at the same indices for every task, so that a menu changes y alone."""
    titles = [f"{as_text(method)}: {_short_finding(points[points['method'] == method])}" for method in methods]
    spacing = {"shared_yaxes": True, "shared_xaxes": True, "horizontal_spacing": 0.03, "vertical_spacing": 0.06}
    figure = make_subplots(2, len(methods), subplot_titles=titles, **spacing)
    for column, method in enumerate(methods, start=1):
        for ratio in ratios:
            part = at_ratio(bands[bands["method"] == method], ratio)
            least = part["mean"].max() * _SMALLEST
            shown, low, high = (
                part.where(part["mean"] > least),
                *(part[end].clip(lower=least) for end in ("low", "high")),
            )
            figure.add_trace(ratio_band(part["index"], low, high, ratio), 1, column)
            line = _line(part["index"], shown["mean"], ratio, "%{y:.4g}", shown=column == 1)
            figure.add_trace(line, 1, column)
            if not math.isnan(ratio):
                figure.add_trace(_line(part["index"], shown["change"], ratio, "%{y:+.1%} of clean"), 2, column)
    return figure


def _drawn(part: pd.DataFrame) -> pd.DataFrame:
    """The indices that carry anything, their bands above zero."""
    least = part["mean"].max() * _SMALLEST
    return part[part["mean"] > least].assign(low=lambda kept: kept["low"].clip(lower=least))


def _short_finding(points: pd.DataFrame) -> str:
    trained = points[points["ratio"].notna()].sort_values("ratio")
    return f"SVE {trained['sve'].iloc[0]:.2f} → {trained['sve'].iloc[-1]:.2f}"


def _task_button(panel: str, view: go.Figure) -> dict[str, Any]:
    y = [[None if np.isnan(value) else float(f"{value:.4g}") for value in trace.y] for trace in view.data]
    notes = [note.text for note in view.layout.annotations]
    layout = {f"annotations[{place}].text": text for place, text in enumerate(notes)}
    return {"label": as_text(panel), "method": "update", "args": [{"y": y}, layout]}


def _highlight(figure: go.Figure, ratio: float | None) -> dict[str, Any]:
    """A step of the slider: the traces of one ratio as they are and all others faint, or all as they are."""
    label = "all" if ratio is None else ratio_label(ratio)
    faint = [1 if label in ("all", trace.legendgroup) else 0.12 for trace in figure.data]
    opacity = [(trace.opacity or 1) * share for trace, share in zip(figure.data, faint, strict=True)]
    return {"label": label, "method": "restyle", "args": [{"opacity": opacity}]}


def _line(x: pd.Series, y: pd.Series, ratio: float, value: str, *, shown: bool = False) -> go.Scatter:
    """A ratio's line, `shown` in the legend or not."""
    look = {"color": ratio_color(ratio), "width": 2, "dash": "dot" if math.isnan(ratio) else "solid"}
    hover = f"{ratio_label(ratio)}<br>i = %{{x}}: {value}<extra></extra>"
    return go.Scatter(x=x, y=y, mode="lines", line=look, hovertemplate=hover, **ratio_legend(ratio, shown=shown))
