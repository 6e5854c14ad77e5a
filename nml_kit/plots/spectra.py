"""Figures of spectra and spectral metrics beside those of `plots`, in the same look: a table in, a Figure out."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import at_ratio, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import (
    INK,
    METHOD_MARKS,
    as_text,
    category_axis,
    dodge,
    error_bar,
    finish,
    method_marks,
    ratio_band,
    ratio_color,
    ratio_legend,
)

_NOISE = "Noise in pre-training"
_LABELS = {"sve": "SVE (nats)", "lsvr": "LSVR (nats)", "effective_rank": "effective rank", "rankme": "RankMe",
           "stable_rank": "stable rank", "participation_ratio": "participation ratio",
           "alpha_exponent": "α exponent"}  # fmt: skip
_FLOOR = 1e-5  # shares below would stretch a small panel for directions that carry nothing
_FAMILY_DASHES = {"flat tail": "solid", "geometric decay": "dash", "equal directions": "dot"}
_GAP = 66  # pixels between rows of panels


def metrics_against_ratio(values: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw every metric against the noise ratio, a panel each: a thin line per seed and the mean with dots.

    `values`: one row per metric, ratio (fraction) and seed: those and value. Raises InvalidInputError for missing
    columns.
    """
    require_columns(values, ["metric", "ratio", "seed", "value"], "metrics_against_ratio")
    values = values[values["ratio"].notna()].sort_values("ratio")
    metrics = [str(metric) for metric in values["metric"].unique()]
    figure, places, height = _grid(
        metrics, [_LABELS.get(metric, as_text(metric)) for metric in metrics], panel_height=165
    )
    for metric, (row, column) in places.items():
        part = values[values["metric"] == metric]
        for seed, line in part.groupby("seed"):
            thin = _line(line["ratio"], line["value"], "#b4bac4", f"seed {seed}", width=1)
            figure.add_trace(thin, row, column)
        mean = part.groupby("ratio")["value"].mean()
        figure.add_trace(_line(mean.index, mean, METHOD_MARKS["LP"][0], "mean", mode="lines+markers"), row, column)
    ratios = ratios_in_order(values)
    figure.update_xaxes(tickvals=ratios, ticktext=[ratio_label(ratio) for ratio in ratios])
    figure.update_xaxes(title_text="noise in pre-training", row=max(row for row, _ in places.values()))
    return finish(figure, title, height=height)


def metric_by_choice(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw metrics under several choices of computation, the ratios of a choice joined: a panel per metric.

    `bands`: one row per metric, choice (text) and ratio: those, mean, low, high (smallest and largest seed). Where the
    distance between choices exceeds that between ratios, the choice matters more than the noise. Raises
    InvalidInputError for missing columns.
    """
    require_columns(bands, ["metric", "choice", "ratio", "mean", "low", "high"], "metric_by_choice")
    metrics, choices = list(bands["metric"].unique()), list(bands["choice"].unique())
    names = [_LABELS.get(metric, as_text(metric)) for metric in metrics]
    figure = make_subplots(1, len(metrics), shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=names)
    for column, metric in enumerate(metrics, start=1):
        part = bands[bands["metric"] == metric]
        ends = part.groupby("choice", sort=False)["mean"].agg(["min", "max"])
        for choice, end in ends.iterrows():
            x, y = [end["min"], end["max"]], [choices.index(choice)] * 2
            figure.add_trace(_line(x, y, "#c3c7ce", "", width=2).update(hoverinfo="skip"), 1, column)
        for ratio in ratios_in_order(part):
            points = at_ratio(part, ratio)
            dots = go.Scatter(x=points["mean"], y=[choices.index(choice) for choice in points["choice"]])
            dots.update(mode="markers", marker={"color": ratio_color(ratio), "size": 10})
            dots.update(error_x=error_bar(points, ratio_color(ratio)), hovertemplate="%{x:.4f}<extra></extra>")
            figure.add_trace(dots.update(ratio_legend(ratio, shown=column == 1)), 1, column)
    category_axis(figure, [as_text(choice) for choice in choices])
    figure.update_xaxes(nticks=6)
    return finish(figure, title, height=100 + 34 * len(choices), legend=_NOISE)


def metric_against_size(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw metrics against the number of samples they are computed on: a panel per metric, a band and line per ratio.

    `bands`: one row per metric, ratio and n: those, mean, low, high (over seeds and draws). Raises InvalidInputError
    for missing columns.
    """
    require_columns(bands, ["metric", "ratio", "n", "mean", "low", "high"], "metric_against_size")
    metrics = list(bands["metric"].unique())
    names = [_LABELS.get(metric, as_text(metric)) for metric in metrics]
    figure = make_subplots(1, len(metrics), horizontal_spacing=0.1, subplot_titles=names)
    for column, metric in enumerate(metrics, start=1):
        for ratio in ratios_in_order(bands):
            part = at_ratio(bands[bands["metric"] == metric], ratio).sort_values("n")
            figure.add_trace(ratio_band(part["n"], part["low"], part["high"], ratio), 1, column)
            line = _line(part["n"], part["mean"], ratio_color(ratio), ratio_label(ratio), mode="lines+markers")
            figure.add_trace(line.update(ratio_legend(ratio, shown=column == 1)), 1, column)
    sizes = sorted(bands["n"].unique())
    figure.update_xaxes(title_text="samples (log scale)", type="log", tickvals=sizes, ticktext=[*map(str, sizes)])
    return finish(figure, title, height=330, legend=_NOISE)


def sve_lsvr_plane(
    families: pd.DataFrame, spectra: pd.DataFrame, points: pd.DataFrame, measured: pd.DataFrame, *, title: str
) -> go.Figure:
    """Draw whole spectra (left) and, in the plane of LSVR and SVE (right), where they lie: synthetic and measured ones.

    `spectra`: family, index (from 1), share; `families`: family, lsvr, sve (nats; see `spectrum_families`), of which
    "flat tail" and "equal directions" bound what is possible; `measured`: ratio, index, share; `points`: ratio, lsvr,
    sve. Raises InvalidInputError for missing columns.
    """
    require_columns(families, ["family", "lsvr", "sve"], "sve_lsvr_plane")
    require_columns(spectra, ["family", "index", "share"], "sve_lsvr_plane")
    require_columns(points, ["ratio", "lsvr", "sve"], "sve_lsvr_plane")
    require_columns(measured, ["ratio", "index", "share"], "sve_lsvr_plane")
    panels = ["Synthetic spectra of one LSVR, and measured ones", "What SVE and LSVR allow each other"]
    figure = make_subplots(1, 2, horizontal_spacing=0.11, subplot_titles=panels)
    for family, curve in families.groupby("family", sort=False):
        style = {"color": INK, "width": 2, "dash": _FAMILY_DASHES.get(str(family), "dashdot")}
        shown = spectra[(spectra["family"] == family) & (spectra["share"] > _FLOOR)]
        lines = [_line(shown["index"], shown["share"], INK, str(family)),
                 _line(curve["lsvr"], curve["sve"], INK, str(family))]  # fmt: skip
        for column, trace in enumerate(lines, start=1):
            figure.add_trace(trace.update(line=style, legendgroup=str(family), showlegend=column == 1), 1, column)
    for ratio in ratios_in_order(points):
        shown = at_ratio(measured[measured["share"] > _FLOOR], ratio).sort_values("index")
        line = _line(shown["index"], shown["share"], ratio_color(ratio), ratio_label(ratio))
        figure.add_trace(line.update(ratio_legend(ratio, shown=False)), 1, 1)
        part = at_ratio(points, ratio)
        dots = _line(part["lsvr"], part["sve"], ratio_color(ratio), ratio_label(ratio), mode="markers")
        figure.add_trace(dots.update(marker_size=9, **ratio_legend(ratio, shown=True)), 1, 2)
    figure.update_xaxes(title_text="index i (log scale)", type="log", dtick=1, col=1)
    figure.update_xaxes(title_text="LSVR (nats)", col=2).update_yaxes(title_text="SVE (nats)", col=2)
    figure.update_yaxes(title_text="σ<sub>i</sub> / Σσ (log scale)", type="log", dtick=1, tickformat="~g", col=1)
    return finish(figure, title, height=400, legend="Spectra")


def spectra_atlas(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the spectrum of every panel (task, held-out domain) at every ratio: small multiples on one scale.

    `bands`: one row per panel (text), ratio and index (from 1): those and share (fraction). Raises InvalidInputError
    for missing columns.
    """
    require_columns(bands, ["panel", "ratio", "index", "share"], "spectra_atlas")
    panels = [str(panel) for panel in bands["panel"].unique()]
    figure, places, height = _grid(panels, [as_text(panel) for panel in panels], panel_height=150, shared=True)
    for number, (panel, (row, column)) in enumerate(places.items()):
        part = bands[(bands["panel"] == panel) & (bands["share"] > _FLOOR)]
        for ratio in ratios_in_order(bands):
            points = at_ratio(part, ratio).sort_values("index")
            line = _line(points["index"], points["share"], ratio_color(ratio), ratio_label(ratio), width=1.5)
            line.update(line_dash="dot" if math.isnan(ratio) else "solid", **ratio_legend(ratio, shown=number == 0))
            figure.add_trace(line, row, column)
    lowest = {column: row for row, column in places.values()}
    for column, row in lowest.items():
        figure.update_xaxes(title_text="index i", row=row, col=column)
    figure.update_yaxes(title_text="σ<sub>i</sub> / Σσ", col=1)
    figure.update_xaxes(type="log", dtick=1, tickformat="~s")
    figure.update_yaxes(type="log", tickvals=[1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1], range=[math.log10(_FLOOR), 0])
    figure.update_yaxes(tickformat="~g")
    return finish(figure, title, height=height, legend=_NOISE)


def changes_by_variant(changes: pd.DataFrame, *, title: str, legend: str) -> go.Figure:
    """Draw changes from clean to noisy pre-training, a panel per quantity, a row per panel name, a mark per variant.

    `changes`: one row per quantity (text, with its unit), panel ("ID · icons") and variant: those, mean, low, high.
    `legend` says what the variants are. Raises InvalidInputError for missing columns.
    """
    require_columns(changes, ["quantity", "panel", "variant", "mean", "low", "high"], "changes_by_variant")
    quantities, panels = list(changes["quantity"].unique()), sorted(changes["panel"].unique())
    variants = list(changes["variant"].unique())
    marks = method_marks(variants)
    spacing = {"shared_yaxes": True, "horizontal_spacing": 0.05}
    figure = make_subplots(1, len(quantities), subplot_titles=[as_text(name) for name in quantities], **spacing)
    for column, quantity in enumerate(quantities, start=1):
        for variant in variants:
            chosen = (changes["quantity"] == quantity) & (changes["variant"] == variant)
            part, (color, symbol) = changes[chosen], marks[str(variant)]
            dots = go.Scatter(x=part["mean"], y=dodge(part["panel"], panels, variant, variants), mode="markers")
            dots.update(marker={"color": color, "symbol": symbol, "size": 9}, error_x=error_bar(part, color))
            dots.update(name=as_text(variant), legendgroup=as_text(variant), showlegend=column == 1)
            dots.update(text=part["panel"].map(as_text), hovertemplate="%{text}<br>%{x:+.4f}<extra></extra>")
            figure.add_trace(dots, 1, column)
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
    category_axis(figure, [as_text(panel) for panel in panels])
    figure.update_xaxes(nticks=6)
    height = 110 + max(16 * len(variants), 22) * max(len(panels), 3)
    return finish(figure, title, height=height, legend=legend if len(variants) > 1 else None)


def _grid(
    keys: list[str], titles: list[str], *, panel_height: int, shared: bool = False
) -> tuple[go.Figure, dict[str, tuple[int, int]], int]:
    """A grid of up to four columns, the (row, column) of each key, and its height in pixels."""
    columns = min(4, len(keys))
    rows = math.ceil(len(keys) / columns)
    inner = rows * panel_height + (rows - 1) * _GAP
    spacing = {"horizontal_spacing": 0.04 if shared else 0.07, "vertical_spacing": _GAP / inner}
    figure = make_subplots(rows, columns, subplot_titles=titles, shared_yaxes=shared, **spacing)
    figure.update_annotations(font_size=13)
    places = {key: (place // columns + 1, place % columns + 1) for place, key in enumerate(keys)}
    return figure, places, inner + 70


def _line(x: object, y: object, color: str, name: str, *, width: float = 2, mode: str = "lines") -> go.Scatter:
    line = go.Scatter(x=np.asarray(x), y=np.asarray(y), mode=mode, name=as_text(name), showlegend=False)
    hover = f"{as_text(name)}<br>%{{x:.4g}}: %{{y:.4g}}<extra></extra>"
    return line.update(line={"color": color, "width": width}, marker={"size": 7}, hovertemplate=hover)
