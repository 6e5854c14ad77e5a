"""Singular spectra and what is computed from them. Each figure's title says what it shows.

A spectrum has a row per index (from 1): `share` is σ_i/Σσ, a fraction. Ratios are fractions, SVE and LSVR nats.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from nml_kit.errors import InvalidInputError
from nml_kit.inference import ratio_label, ratios_in_order, require_columns
from nml_kit.plots import panels
from nml_kit.plots.controls import add_control
from nml_kit.plots.panels import NOISE_LEGEND, Style, add_series, with_roles
from nml_kit.plots.theme import BLUE, GREY, INK, PALE, Mark, Marks, as_text, finish

Scale = Literal["linear", "log y", "log–log"]
_QUANTITIES = {
    "share": "σ<sub>i</sub> / Σσ",
    "singular value": "σ<sub>i</sub>",
    "cumulative energy": "share of Σσ² in the first i",
}
_LOG = {"type": "log", "tickformat": "~g", "nticks": 6}
_LOG_SHARE = {"title_text": "σ<sub>i</sub> / Σσ (log scale)", **_LOG}
_LOG_INDEX = {"title_text": "index i (log scale)", "type": "log", "dtick": 1}
_CURVE = Style("lines", "%{fullData.name}<br>i = %{x}: %{y:.4g}", "band")
_NOTHING = 1e-4  # of the largest: what lies below carries nothing, and would stretch a log axis
_QUOTIENT = 1e-3  # of the largest: a quotient of less says nothing
_FLOOR = 1e-5  # of all: for spectra of tens of thousands of directions
_FAMILY_DASHES = {"flat tail": "solid", "geometric decay": "dash", "equal directions": "dot"}


def singular_spectrum(spectra: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw singular values σ_i/Σσ on a log scale and their cumulative energy, one line per noise ratio.

    `spectra`: one row per ratio and index: ratio, index, share, cumulative_energy (fractions); low and high, if
    present, are the band of share over seeds. Raises InvalidInputError for repeated rows.
    """
    table, marks = with_roles(spectra, "singular_spectrum", "index", "share", "cumulative_energy")
    if table.duplicated(["ratio", "index"]).any():
        raise InvalidInputError("Expected one row per ratio and index, got more: average the seeds first.")
    table["mean"] = table["share"]
    figure, (left, right) = panels.grid(["Singular values", "Cumulative energy"], heights=325)
    add_series(figure, _visible(table), "index", "mean", marks, _CURVE, left)
    add_series(figure, table, "index", "cumulative_energy", marks, _CURVE, right)
    figure.update_xaxes(title_text="index i", **left).update_xaxes(**_LOG_INDEX | {"dtick": None}, **right)
    figure.update_yaxes(**_LOG_SHARE, **left)
    figure.update_yaxes(title_text=_QUANTITIES["cumulative energy"], range=[0, 1.02], **right)
    return finish(figure, title, height=385, legend=NOISE_LEGEND)


def spectra_atlas(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the spectrum of every panel (task, held-out domain) at every ratio: small multiples on one scale.

    `bands`: one row per panel (text), ratio and index: those and share.
    """
    table, marks = with_roles(bands, "spectra_atlas", "index", "share", panel="panel")
    table, axes = table[table["share"] > _FLOOR], ("index i", _QUANTITIES["share"])
    figure, _ = panels.draw(
        table, "index", "share", marks, _CURVE, columns=4, heights=130, axes=axes, shared_yaxes=True
    )
    figure.update_xaxes(type="log", dtick=1, tickformat="~s").update_yaxes(type="log", range=[-5, 0], dtick=1)
    return finish(figure.update_yaxes(tickformat="~g"), title, legend=NOISE_LEGEND)


def spectrum_among_known(curve: pd.DataFrame, known: pd.DataFrame, *, name: str, title: str) -> go.Figure:
    """Draw a spectrum over those of networks whose noise is known, each stretched to its own number of directions.

    `curve`: position ((i − ½)/r, from 0 to 1), height (r·σ_i/Σσ, 1 for a flat spectrum); `known`: those and ratio.
    """
    require_columns(curve, ["position", "height"], "spectrum_among_known")
    table, marks = with_roles(known, "spectrum_among_known", "position", "height")
    table = _visible(pd.concat([table, curve.assign(series=name)]), "height")
    figure, style = go.Figure(), Style("lines", "%{fullData.name}<br>at %{x:.1%}: %{y:.3g}")
    add_series(figure, table, "position", "height", marks | {name: Mark(INK, width=3)}, style)
    figure.update_xaxes(title_text="share of the directions (log scale)", type="log", tickformat="~%", dtick=1)
    figure.update_yaxes(title_text="σ<sub>i</sub> over their mean (log scale)", **_LOG)
    return finish(figure, title, height=380, legend="Noise in pre-training (our networks, icons)")


def head_spectra(spectra: pd.DataFrame, metrics: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the singular values of what each head's classifier reads, its SVE and LSVR in the legend.

    `spectra`: method, index, share; `metrics`: method, sve, lsvr.
    """
    require_columns(metrics, ["method", "sve", "lsvr"], "head_spectra")
    table, by_method = with_roles(spectra, "head_spectra", "index", "share", series="method")
    names = {row.method: f"{row.method}: SVE {row.sve:.3f}, LSVR {row.lsvr:.3f}" for row in metrics.itertuples()}
    table, marks = table.assign(series=table["series"].map(names)), {names[key]: by_method[key] for key in by_method}
    figure = go.Figure().update_xaxes(**_LOG_INDEX).update_yaxes(**_LOG_SHARE)
    add_series(figure, _visible(table, "share"), "index", "share", marks, _CURVE)
    return finish(figure, title, height=330, legend="Head")


def sve_lsvr_plane(
    families: pd.DataFrame, spectra: pd.DataFrame, points: pd.DataFrame, measured: pd.DataFrame, *, title: str
) -> go.Figure:
    """Draw whole spectra (left) and, in the plane of LSVR and SVE (right), where they lie: synthetic and measured ones.

    `spectra`: family, index, share; `families`: family, lsvr, sve (see `spectrum_families`), of which "flat tail" and
    "equal directions" bound what is possible; `measured`: ratio, index, share; `points`: ratio, lsvr, sve.
    """
    bounds, _ = with_roles(families, "sve_lsvr_plane", "lsvr", "sve", series="family")
    shapes, _ = with_roles(spectra, "sve_lsvr_plane", "index", "share", series="family")
    places, marks = with_roles(points, "sve_lsvr_plane", "lsvr", "sve")
    curves, _ = with_roles(measured, "sve_lsvr_plane", "index", "share")
    dashed = {name: Mark(INK, dash=_FAMILY_DASHES.get(name, "dashdot")) for name in bounds["series"]}
    titles = ["Synthetic spectra of one LSVR, and measured ones", "What SVE and LSVR allow each other"]
    figure, (left, right) = panels.grid(titles, heights=340)
    shares = pd.concat([shapes, curves])
    add_series(figure, shares[shares["share"] > _FLOOR], "index", "share", dashed | marks, panels.LINES, left)
    add_series(figure, bounds, "lsvr", "sve", dashed, panels.LINES, right)
    add_series(figure, places, "lsvr", "sve", marks, Style("markers"), right)
    figure.update_xaxes(**_LOG_INDEX, **left).update_yaxes(**_LOG_SHARE | {"nticks": None, "dtick": 1}, **left)
    figure.update_xaxes(title_text="LSVR (nats)", **right).update_yaxes(title_text="SVE (nats)", **right)
    return finish(figure, title, height=400, legend="Spectra")


def metrics_against_ratio(values: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw every metric against the noise ratio, a panel each: a thin line per seed and the mean with dots.

    `values`: one row per metric, ratio and seed: those and value.
    """
    rows = panels.trained(values)
    table, _ = with_roles(rows, "metrics_against_ratio", "ratio", "value", panel="metric", series="seed")
    means = table.groupby(["panel", "ratio"], sort=False)["value"].mean().reset_index().assign(series="mean")
    marks = {str(seed): Mark(PALE, width=1, size=3) for seed in table["series"].unique()} | {"mean": Mark(BLUE)}
    layout: dict[str, Any] = {"columns": 4, "heights": 165, "axes": (panels.NOISE_AXIS, "")}
    figure, _ = panels.draw(pd.concat([table, means]), "ratio", "value", marks, **layout)
    return finish(panels.ratio_axis(figure, ratios_in_order(table)), title)


def metric_against_size(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw metrics against the number of samples they are computed on: a panel per metric, a band and line per ratio.

    `bands`: one row per metric, ratio and n: those, mean, low, high (over seeds and draws).
    """
    table, marks = with_roles(bands, "metric_against_size", "n", *panels.INTERVAL, panel="metric")
    axes, style = ("samples (log scale)", ""), Style(interval="band")
    figure, _ = panels.draw(table.sort_values("n"), "n", "mean", marks, style, heights=270, axes=axes)
    sizes = sorted(bands["n"].unique())
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[*map(str, sizes)])
    return finish(figure, title, height=330, legend=NOISE_LEGEND)


def spectrum_view(
    bands: pd.DataFrame, between: pd.DataFrame, *, quantity: str, scale: Scale, window: Sequence[int], title: str
) -> go.Figure:
    """Draw a quantity of the singular values against their index (above) and its change from clean (below).

    `bands` (see `quantity_bands`): ratio, index, mean, low, high, change; `between`: index, mean, change, a dashed line
    for a ratio between measured ones; `window`: the first and the last index shown.
    """
    table, marks = with_roles(bands, "spectrum_view", "index", *panels.INTERVAL, "change")
    (first, last), dashed = window, "between"
    table = pd.concat([table, between.assign(series=dashed)])
    table = table[table["index"].between(first, last)].assign(panel="")
    figure = _value_and_change(table, marks | {dashed: Mark(INK, dash="dash")}, height=300)
    figure.update_traces(showlegend=False, hoverinfo="skip", hovertemplate=None, selector={"name": dashed})
    x_type, y_type = {"linear": ("linear", "linear"), "log y": ("linear", "log"), "log–log": ("log", "log")}[scale]
    figure.update_xaxes(type=x_type, dtick=1 if x_type == "log" and last >= 20 * first else None)
    figure.update_xaxes(title_text=_LOG_INDEX["title_text"] if x_type == "log" else "index i", row=2)
    figure.update_yaxes(type=y_type, title_text=_QUANTITIES[quantity], row=1)
    figure.update_layout(uirevision=f"{quantity}, {scale}, {first} to {last}")  # zoomed, it stays so as lines move
    return finish(figure, title, height=480, legend=NOISE_LEGEND)


def paired_spectra(first: pd.Series, second: pd.Series, names: tuple[str, str], *, title: str) -> go.Figure:
    """Draw two spectra (shares by index) on logarithmic axes, and below the change from the first."""
    telling = first > _QUOTIENT * first.max()
    tables = [
        pd.DataFrame({"index": part.index, "mean": part, "series": side, "change": (part / first - 1)[telling]})
        for side, part in (("first", first), ("second", second))
    ]
    marks = {"first": Mark(GREY, dash="dash"), "second": Mark(INK)}
    figure = _value_and_change(pd.concat(tables).assign(panel=""), marks, height=230)
    for trace in figure.data:
        trace.name = as_text(names[trace.name == "second"])
    figure.update_xaxes(type="log", dtick=1).update_xaxes(**_LOG_INDEX, row=2)
    figure.update_yaxes(type="log", title_text=_QUANTITIES["share"], row=1)
    return finish(figure, title, height=400, legend=" ")


def spectrum_page(bands: pd.DataFrame, points: pd.DataFrame, *, quantity: str, title: str) -> go.Figure:
    """Draw spectra and their change from clean, a column per method, with a menu of tasks, a slider over ratios.

    `bands`: panel, method, ratio, index, mean, low, high, change; `points`: panel, method, ratio, sve, lsvr, means over
    seeds.
    """
    needed = ["panel", "method", "index", *panels.INTERVAL, "change"]
    (table, marks), views = with_roles(bands, "spectrum_page", *needed), {}
    require_columns(points, ["panel", "method", "ratio", "sve", "lsvr"], "spectrum_page")
    for task, part in table.groupby("panel"):
        ends = points[(points["panel"] == task) & points["ratio"].notna()].sort_values("ratio").groupby("method")["sve"]
        moves = {method: f"{method}: SVE {sve.iloc[0]:.2f} → {sve.iloc[-1]:.2f}" for method, sve in ends}
        view = _value_and_change(part.assign(panel=part["method"].map(moves)), marks, height=330)
        view.update_xaxes(type="log", dtick=1).update_xaxes(**_LOG_INDEX, row=2)
        view.update_yaxes(type="log", row=1).update_yaxes(title_text=_QUANTITIES[quantity], row=1, col=1)
        views[as_text(task)] = finish(view, title, height=560, legend=NOISE_LEGEND)
    figure = go.Figure(next(iter(views.values())))
    scales = {f"{name} scale": go.Figure(figure).update_yaxes(type=name, row=1) for name in ("log", "linear")}
    strongly = {"all": figure} | {label: _with_others_faint(figure, label) for label in marks}
    add_control(figure, strongly, "slider")
    add_control(figure, views, "menu")
    return add_control(figure, scales, "buttons")


def _with_others_faint(figure: go.Figure, name: str) -> go.Figure:
    return go.Figure(figure).for_each_trace(
        lambda trace: trace.update(opacity=(trace.opacity or 1) * (1 if trace.legendgroup == name else 0.12))
    )


def _value_and_change(table: pd.DataFrame, marks: Marks, *, height: int) -> go.Figure:
    """A column for each `panel`: above the mean with its band, below the change from clean; by index."""
    names = list(dict.fromkeys(table["panel"]))
    layout: dict[str, Any] = {"shared_yaxes": True, "shared_xaxes": True, "vertical_spacing": 0.06}
    titles = [*names, *[""] * len(names)]
    figure, places = panels.grid(titles, len(names), [height, height // 2], **layout)
    change = {key: mark for key, mark in marks.items() if mark.symbol != "circle-open"}  # random: too far away
    style = _CURVE._replace(hover="%{fullData.name}<br>i = %{x}: %{y:+.1%}")
    for name, above, below in zip(names, places, places[len(names) :], strict=False):
        part = _visible(table[table["panel"] == name])
        add_series(figure, part, "index", "mean", marks, _CURVE, above)
        add_series(figure, part, "index", "change", change, style, below)
    figure.update_yaxes(tickformat="~g", nticks=6, row=1).update_yaxes(tickformat="+~%", nticks=6, row=2)
    return figure.update_yaxes(title_text="change from clean", row=2, col=1)


def spectral_plane(points: pd.DataFrame, between: pd.DataFrame) -> go.Figure:
    """Draw SVE against LSVR: a small dot per seed, a large one for the mean of a ratio, the path joining the ratios.

    `points`: ratio, seed, sve, lsvr; `between`: sve, lsvr of a ratio between measured ones, an open diamond.
    """
    table, marks = with_roles(points, "spectral_plane", "seed", "sve", "lsvr")
    means = table.groupby(["ratio", "series"])[["lsvr", "sve"]].mean().reset_index()
    path = panels.line(means["lsvr"], means["sve"], "", Mark(PALE))
    figure = go.Figure(path.update(hoverinfo="skip", hovertemplate=None))
    style = Style("markers", "%{fullData.name}<br>LSVR %{x:.3f}<br>SVE %{y:.3f}")
    for rows, size in ((table, 6), (means, 13)):
        sized = {name: mark._replace(size=size) for name, mark in marks.items()}
        add_series(figure, rows, "lsvr", "sve", sized, style)
    diamond = panels.line(between["lsvr"], between["sve"], "", Mark(INK, "diamond-open", size=19), Style("markers"))
    figure.add_trace(diamond.update(marker_line_width=2, hoverinfo="skip", hovertemplate=None))
    figure.update_xaxes(title_text="LSVR (nats)", nticks=5).update_yaxes(title_text="SVE (nats)", nticks=6)
    ends = " to ".join(ratio_label(means["ratio"].agg(end)) for end in ("min", "max"))
    return finish(figure, f"SVE and LSVR from {ends} noise", height=480)


def spectral_finding(means: pd.DataFrame) -> str:
    """What SVE and LSVR do from the lowest to the highest ratio; `means`: ratio, sve, lsvr, without NaN ratios.

    >>> spectral_finding(pd.DataFrame({"ratio": [0.0, 0.3], "sve": [3.0, 3.5], "lsvr": [2.0, 1.9]}))
    'SVE 3.000 → 3.500, LSVR 2.000 → 1.900'
    """
    ordered = means.sort_values("ratio")
    first, last = ordered.iloc[0], ordered.iloc[-1]
    return ", ".join(f"{name.upper()} {first[name]:.3f} → {last[name]:.3f}" for name in ("sve", "lsvr"))


def _visible(table: pd.DataFrame, column: str = "mean") -> pd.DataFrame:
    """The indices that carry anything, with bands that end above zero: on a log axis there is none."""
    least = _NOTHING * table[column].max()
    table = table[table[column] > least]
    return table.assign(low=table["low"].clip(lower=least)) if "low" in table else table
