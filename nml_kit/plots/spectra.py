"""Singular spectra and what is computed from them. Each figure's title says what it shows.

A spectrum has a row per index (from 1): `share` is σ_i/Σσ, a fraction. Ratios are fractions, SVE and LSVR nats.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from nml_kit.errors import InvalidInputError
from nml_kit.inference import ratio_label, ratios_in_order, require_columns
from nml_kit.plots.controls import add_control
from nml_kit.plots.panels import NOISE_AXIS, NOISE_LEGEND, Look, add_series, grid, line, panels, ratio_axis, trained
from nml_kit.plots.theme import BLUE, GREY, INK, METRIC_NAMES, PALE, Mark, as_text, finish, method_marks, ratio_marks

Scale = Literal["linear", "log y", "log–log"]
_SHARE, _INDEX = "σ<sub>i</sub> / Σσ (log scale)", "index i (log scale)"
_QUANTITIES = {"share": "σ<sub>i</sub> / Σσ", "singular value": "σ<sub>i</sub>",
               "cumulative energy": "share of Σσ² in the first i"}  # fmt: skip
_LOG = {"type": "log", "tickformat": "~g", "nticks": 6}
_AT_INDEX = "%{fullData.name}<br>i = %{x}: %{y:.4g}"
_NOTHING = 1e-4  # of the largest: what lies below carries nothing, and would stretch a log axis
_QUOTIENT = 1e-3  # of the largest: a quotient of less says nothing
_FLOOR = 1e-5  # of all: for spectra of tens of thousands of directions
_FAMILY_DASHES = {"flat tail": "solid", "geometric decay": "dash", "equal directions": "dot"}


def singular_spectrum(spectra: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw singular values σ_i/Σσ on a log scale and their cumulative energy, one line per noise ratio.

    `spectra`: one row per ratio and index: ratio, index, share, cumulative_energy (fractions); low and high, if
    present, are the band of share over seeds. Raises InvalidInputError for repeated rows.
    """
    require_columns(spectra, ["ratio", "index", "share", "cumulative_energy"], "singular_spectrum")
    if spectra.duplicated(["ratio", "index"]).any():
        raise InvalidInputError("Expected one row per ratio and index, got more: average the seeds first.")
    table, marks = _by_ratio(spectra).assign(mean=spectra["share"]), ratio_marks(ratios_in_order(spectra))
    figure, (left, right) = grid(["Singular values", "Cumulative energy"], heights=325)
    look: Look = {"mode": "lines", "interval": "band", "hover": _AT_INDEX}
    add_series(figure, _visible(table), "index", "mean", marks, left, **look)
    add_series(figure, table, "index", "cumulative_energy", marks, right, **look)
    figure.update_xaxes(title_text="index i", **left).update_xaxes(title_text=_INDEX, type="log", **right)
    figure.update_yaxes(title_text=_SHARE, **_LOG, **left)
    figure.update_yaxes(title_text="share of Σσ² in the first i", range=[0, 1.02], **right)
    return finish(figure, title, height=385, legend=NOISE_LEGEND)


def spectra_atlas(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the spectrum of every panel (task, held-out domain) at every ratio: small multiples on one scale.

    `bands`: one row per panel (text), ratio and index: those and share.
    """
    require_columns(bands, ["panel", "ratio", "index", "share"], "spectra_atlas")
    layout: Look = {"columns": 4, "heights": 130, "shared": True, "x_title": "index i", "y_title": _QUANTITIES["share"]}
    table, marks = _by_ratio(bands), ratio_marks(ratios_in_order(bands))
    table = table[table["share"] > _FLOOR]
    figure, _ = panels(table, "index", "share", marks, layout, mode="lines", hover=_AT_INDEX)
    figure.update_xaxes(type="log", dtick=1, tickformat="~s").update_yaxes(type="log", range=[-5, 0], dtick=1)
    return finish(figure.update_yaxes(tickformat="~g"), title, legend=NOISE_LEGEND)


def spectrum_among_known(curve: pd.DataFrame, known: pd.DataFrame, *, name: str, title: str) -> go.Figure:
    """Draw a spectrum over those of networks whose noise is known, each stretched to its own number of directions.

    `curve`: position ((i − ½)/r, from 0 to 1), height (r·σ_i/Σσ, 1 for a flat spectrum); `known`: those and ratio.
    """
    require_columns(curve, ["position", "height"], "spectrum_among_known")
    require_columns(known, ["ratio", "position", "height"], "spectrum_among_known")
    table = pd.concat([_by_ratio(known), curve.assign(series=name)])
    table = table[table["height"] > _NOTHING * table["height"].max()]
    marks = ratio_marks(ratios_in_order(known)) | {name: Mark(INK, width=3)}
    figure, hover = go.Figure(), "%{fullData.name}<br>at %{x:.1%}: %{y:.3g}"
    add_series(figure, table, "position", "height", marks, mode="lines", hover=hover)
    figure.update_xaxes(title_text="share of the directions (log scale)", type="log", tickformat="~%", dtick=1)
    figure.update_yaxes(title_text="σ<sub>i</sub> over their mean (log scale)", **_LOG)
    return finish(figure, title, height=380, legend="Noise in pre-training (our networks, icons)")


def head_spectra(spectra: pd.DataFrame, metrics: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the singular values of what each head's classifier reads, its SVE and LSVR in the legend.

    `spectra`: method, index, share; `metrics`: method, sve, lsvr.
    """
    require_columns(spectra, ["method", "index", "share"], "head_spectra")
    require_columns(metrics, ["method", "sve", "lsvr"], "head_spectra")
    names = {row.method: f"{row.method}: SVE {row.sve:.3f}, LSVR {row.lsvr:.3f}" for row in metrics.itertuples()}
    marks = {names[method]: mark for method, mark in method_marks(spectra["method"]).items()}
    table, figure = spectra.assign(series=spectra["method"].map(names), mean=spectra["share"]), go.Figure()
    add_series(figure, _visible(table), "index", "mean", marks, mode="lines", hover=_AT_INDEX)
    figure.update_xaxes(title_text=_INDEX, type="log", dtick=1).update_yaxes(title_text=_SHARE, **_LOG)
    return finish(figure, title, height=330, legend="Head")


def sve_lsvr_plane(
    families: pd.DataFrame, spectra: pd.DataFrame, points: pd.DataFrame, measured: pd.DataFrame, *, title: str
) -> go.Figure:
    """Draw whole spectra (left) and, in the plane of LSVR and SVE (right), where they lie: synthetic and measured ones.

    `spectra`: family, index, share; `families`: family, lsvr, sve (see `spectrum_families`), of which "flat tail" and
    "equal directions" bound what is possible; `measured`: ratio, index, share; `points`: ratio, lsvr, sve.
    """
    for table, key in ((families, "family"), (points, "ratio")):
        require_columns(table, [key, "lsvr", "sve"], "sve_lsvr_plane")
    for table, key in ((spectra, "family"), (measured, "ratio")):
        require_columns(table, [key, "index", "share"], "sve_lsvr_plane")
    titles = ["Synthetic spectra of one LSVR, and measured ones", "What SVE and LSVR allow each other"]
    figure, (left, right) = grid(titles, heights=340)
    bounds = {str(name): Mark(INK, dash=_FAMILY_DASHES.get(str(name), "dashdot")) for name in families["family"]}
    marks = ratio_marks(ratios_in_order(points))
    shares = pd.concat([spectra.assign(series=spectra["family"]), _by_ratio(measured)])
    add_series(figure, shares[shares["share"] > _FLOOR], "index", "share", bounds | marks, left, mode="lines")
    add_series(figure, families.assign(series=families["family"]), "lsvr", "sve", bounds, right, mode="lines")
    add_series(figure, _by_ratio(points), "lsvr", "sve", marks, right, mode="markers")
    figure.update_xaxes(title_text=_INDEX, type="log", dtick=1, **left)
    figure.update_xaxes(title_text="LSVR (nats)", **right).update_yaxes(title_text="SVE (nats)", **right)
    figure.update_yaxes(title_text=_SHARE, type="log", dtick=1, tickformat="~g", **left)
    return finish(figure, title, height=400, legend="Spectra")


def metrics_against_ratio(values: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw every metric against the noise ratio, a panel each: a thin line per seed and the mean with dots.

    `values`: one row per metric, ratio and seed: those and value.
    """
    table = trained(values, ["metric", "ratio", "seed", "value"], "metrics_against_ratio")
    table = table.assign(panel=[METRIC_NAMES.get(name, name) for name in table["metric"]])
    means = table.groupby(["panel", "ratio"], sort=False)["value"].mean().reset_index().assign(series="mean")
    seeds = table.assign(series=[f"seed {seed}" for seed in table["seed"]])
    thin = {name: Mark(PALE, width=1, size=3) for name in seeds["series"].unique()}
    layout: Look = {"columns": 4, "heights": 165, "x_title": NOISE_AXIS, "y_title": ""}
    figure, _ = panels(pd.concat([seeds, means]), "ratio", "value", thin | {"mean": Mark(BLUE)}, layout)
    ratio_axis(figure, ratios_in_order(table))
    return finish(figure, title)


def metric_against_size(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw metrics against the number of samples they are computed on: a panel per metric, a band and line per ratio.

    `bands`: one row per metric, ratio and n: those, mean, low, high (over seeds and draws).
    """
    require_columns(bands, ["metric", "ratio", "n", "mean", "low", "high"], "metric_against_size")
    table = _by_ratio(bands).assign(panel=[METRIC_NAMES.get(name, name) for name in bands["metric"]])
    layout: Look = {"heights": 270, "x_title": "samples (log scale)", "y_title": ""}
    marks = ratio_marks(ratios_in_order(bands))
    figure, _ = panels(table.sort_values("n"), "n", "mean", marks, layout, interval="band")
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
    require_columns(bands, ["ratio", "index", "mean", "low", "high", "change"], "spectrum_view")
    (first, last), dashed = window, "between"
    table = pd.concat([_by_ratio(bands), between.assign(series=dashed)])
    table = table[table["index"].between(first, last)].assign(panel="")
    marks = ratio_marks(ratios_in_order(bands)) | {dashed: Mark(INK, dash="dash")}
    figure = _value_and_change(table, marks, height=300)
    figure.update_traces(showlegend=False, hoverinfo="skip", hovertemplate=None, selector={"name": dashed})
    x_type, y_type = {"linear": ("linear", "linear"), "log y": ("linear", "log"), "log–log": ("log", "log")}[scale]
    figure.update_xaxes(type=x_type, dtick=1 if x_type == "log" and last >= 20 * first else None)
    figure.update_xaxes(title_text=_INDEX if x_type == "log" else "index i", row=2)
    figure.update_yaxes(type=y_type, title_text=_QUANTITIES[quantity], row=1)
    figure.update_layout(uirevision=f"{quantity}, {scale}, {first} to {last}")  # zoomed, it stays so as lines move
    return finish(figure, title, height=480, legend=NOISE_LEGEND)


def paired_spectra(first: pd.Series, second: pd.Series, names: tuple[str, str], *, title: str) -> go.Figure:
    """Draw two spectra (shares by index) on logarithmic axes, and below the change from the first."""
    pair = {"first": first, "second": second}
    telling = first > _QUOTIENT * first.max()
    tables = [pd.DataFrame({"index": part.index, "mean": part, "series": side, "change": (part / first - 1)[telling]})
              for side, part in pair.items()]  # fmt: skip
    marks = {"first": Mark(GREY, dash="dash"), "second": Mark(INK)}
    figure = _value_and_change(pd.concat(tables).assign(panel=""), marks, height=230)
    for trace in figure.data:
        trace.name = as_text(names[trace.name == "second"])
    figure.update_xaxes(type="log", dtick=1).update_xaxes(title_text=_INDEX, row=2)
    figure.update_yaxes(type="log", title_text=_QUANTITIES["share"], row=1)
    return finish(figure, title, height=400, legend=" ")


def spectrum_page(bands: pd.DataFrame, points: pd.DataFrame, *, quantity: str, title: str) -> go.Figure:
    """Draw spectra and their change from clean, a column per method, with a menu of tasks, a slider over ratios.

    `bands`: panel, method, ratio, index, mean, low, high, change; `points`: panel, method, ratio, sve, lsvr, means over
    seeds.
    """
    require_columns(bands, ["panel", "method", "ratio", "index", "mean", "low", "high", "change"], "spectrum_page")
    require_columns(points, ["panel", "method", "ratio", "sve", "lsvr"], "spectrum_page")
    marks, views = ratio_marks(ratios_in_order(bands)), {}
    for task, part in _by_ratio(bands).groupby("panel"):
        ends = points[(points["panel"] == task) & points["ratio"].notna()].sort_values("ratio").groupby("method")["sve"]
        moves = {method: f"{method}: SVE {sve.iloc[0]:.2f} → {sve.iloc[-1]:.2f}" for method, sve in ends}
        view = _value_and_change(part.assign(panel=part["method"].map(moves)), marks, height=330)
        view.update_xaxes(type="log", dtick=1).update_xaxes(title_text=_INDEX, row=2)
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


def _value_and_change(table: pd.DataFrame, marks: Mapping[str, Mark], *, height: int) -> go.Figure:
    """A column for each `panel`: above the mean with its band, below the change from clean; by index."""
    names = list(dict.fromkeys(table["panel"]))
    layout: Look = {"columns": len(names), "heights": [height, height // 2], "shared": True, "vertical_spacing": 0.06}
    figure, places = grid([*names, *[""] * len(names)], shared_xaxes=True, **layout)
    for name, above, below in zip(names, places, places[len(names) :], strict=False):
        part = _visible(table[table["panel"] == name])
        add_series(figure, part, "index", "mean", marks, above, mode="lines", interval="band", hover=_AT_INDEX)
        change = {key: mark for key, mark in marks.items() if mark.symbol != "circle-open"}  # random: too far away
        hover = "%{fullData.name}<br>i = %{x}: %{y:+.1%}"
        add_series(figure, part, "index", "change", change, below, mode="lines", hover=hover)
    figure.update_yaxes(tickformat="~g", nticks=6, row=1).update_yaxes(tickformat="+~%", nticks=6, row=2)
    return figure.update_yaxes(title_text="change from clean", row=2, col=1)


def spectral_plane(points: pd.DataFrame, between: pd.DataFrame) -> go.Figure:
    """Draw SVE against LSVR: a small dot per seed, a large one for the mean of a ratio, the path joining the ratios.

    `points`: ratio, seed, sve, lsvr; `between`: sve, lsvr of a ratio between measured ones, an open diamond.
    """
    require_columns(points, ["ratio", "seed", "sve", "lsvr"], "spectral_plane")
    means = points.groupby("ratio")[["lsvr", "sve"]].mean().reset_index()
    figure = go.Figure(line(means["lsvr"], means["sve"], "", Mark(PALE)).update(hoverinfo="skip", hovertemplate=None))
    marks = ratio_marks(ratios_in_order(means))
    hover = "%{fullData.name}<br>LSVR %{x:.3f}<br>SVE %{y:.3f}"
    for table, size in ((points, 6), (means, 13)):
        sized = {name: mark._replace(size=size) for name, mark in marks.items()}
        add_series(figure, _by_ratio(table), "lsvr", "sve", sized, mode="markers", hover=hover)
    diamond = line(between["lsvr"], between["sve"], "", Mark(INK, "diamond-open", size=19), mode="markers")
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


def _by_ratio(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(series=table["ratio"].map(ratio_label))


def _visible(table: pd.DataFrame, column: str = "mean") -> pd.DataFrame:
    """The indices that carry anything, with bands that end above zero: on a log axis there is none."""
    least = _NOTHING * table[column].max()
    table = table[table[column] > least]
    return table.assign(low=table["low"].clip(lower=least)) if "low" in table else table
