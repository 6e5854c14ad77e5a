"""Lines over noise ratios, shares of the samples, epochs and weights. Each figure's title says what it shows.

A table that lacks a column is an InvalidInputError that names it.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit.inference import panel_names, ratio_label, ratios_in_order, require_columns
from nml_kit.plots import panels
from nml_kit.plots.controls import add_control
from nml_kit.plots.panels import PANEL, Role
from nml_kit.plots.theme import GREY, PALE, Mark, Marks, as_text, finish, series_mark

_TICKS = {
    "ratio": panels.NOISE_AXIS,
    "fraction": "share of the train samples",
    "label_noise": "flipped downstream labels",
}
_HISTORY = {
    "loss": "training loss (nats)",
    "test_accuracy": "accuracy on clean test images",
    "memorised": "share of the noise memorised",
}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_APART = 0.04  # of an axis: over it lie the series at one place of it


def accuracy_lines(
    summary: pd.DataFrame, x: str = "ratio", *, panel: Role = PANEL, series: str = "method", title: str
) -> go.Figure:
    """Draw accuracy against `x` ("ratio", "fraction" or "label_noise"): lines with 95 % intervals.

    `summary`: one row per value of `x`, of `panel` (a column or several) and of `series`: those, ratio, mean, low, high
    (fractions). Rows with ratio NaN, the random-initialised backbone, are left out; against the ratio they become a
    number and, where it leaves the lines their room, a dotted line.
    """
    roles: dict[str, Any] = {"panel": panel, "series": series, "text": x}
    table, marks = panels.with_roles(panels.trained(summary), "accuracy_lines", *panels.INTERVAL, **roles)
    values: list[float] = sorted(table[x].unique())
    layout: dict[str, Any] = {"axes": (_TICKS[x], panels.ACCURACY)}
    style = panels.INTERVALS._replace(spread=_APART * np.ptp(values))
    if panel[-1] == "ratio":  # a column of panels for each
        style, layout = panels.INTERVALS, layout | {"columns": table["ratio"].nunique(), "shared_yaxes": True}
    figure, places = panels.draw(table, x, "mean", marks, style, **layout)
    random = summary[summary["ratio"].isna()]
    best = dict(random["mean"].groupby(panel_names(random)).max()) if x == "ratio" else {}
    for number, (name, part) in enumerate(table.groupby("panel", sort=False)):
        if name in best:
            value, low, high = best[str(name)], part["low"].min(), part["high"].max()
            words = f'  <span style="font-size:12px;color:{GREY}">random init {value:.3f}</span>'
            figure.layout.annotations[number].text += words
            if 2 * low - high <= value <= 2 * high - low:
                figure.add_hline(y=value, line={"color": GREY, "dash": "dot"}, **places[number])
    return finish(panels.ratio_axis(figure, values), title, legend=panels.LEGENDS[series])


def pretraining_curves(history: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw what pre-training learns and memorises per epoch: a line per noise ratio, the mean over seeds.

    `history`: one row per ratio, seed and epoch: those, test_accuracy, memorised (fractions, NaN where nothing is to
    memorise) and perhaps loss (nats). Bands reach from the smallest to the largest seed. With a column variant (text)
    each of these has its dash and symbol, the legend lies below, and there are no bands.
    """
    quantities = [name for name in _HISTORY if name != "loss" or name in history]
    table, marks = panels.with_roles(history, "pretraining_curves", "seed", "epoch", *quantities)
    dashes = dict(zip(history.get("variant", pd.Series()).unique(), _DASHES, strict=False))
    for label, mark in list(marks.items()) if dashes else ():
        for place, (variant, dash) in enumerate(dashes.items()):
            marks[f"{variant}, {label}"] = Mark(mark.color, series_mark(place).symbol, dash)
        del marks[label]
    if dashes:
        table["series"] = table["variant"] + ", " + table["series"]
    long = table.melt(["series", "epoch", "seed"], quantities, "quantity").dropna()
    long["panel"] = pd.Categorical(long["quantity"].map(_HISTORY), [_HISTORY[name] for name in quantities])
    values = long.groupby(["panel", "series", "epoch"], observed=True)["value"]
    means = values.agg(mean="mean", low="min", high="max").drop(columns=["low", "high"] if dashes else []).reset_index()
    layout: dict[str, Any] = {"columns": len(quantities), "axes": ("epoch", "")}
    figure, _ = panels.draw(means, "epoch", "mean", marks, panels.Style(interval="band"), **layout)
    figure.update_xaxes(tick0=0, dtick=max(1, math.ceil(history["epoch"].max() / 7))).update_yaxes(rangemode="tozero")
    if not dashes:
        return finish(figure, title, height=360, legend=panels.NOISE_LEGEND)
    finish(figure, title, height=330 + 20 * len(marks), legend=" ")
    below = {"orientation": "v", "x": 0, "xref": "paper", "y": -0.22, "yref": "paper", "yanchor": "top"}
    return figure.update_layout(legend=below, margin_t=figure.layout.margin.t - 44, height=figure.layout.height - 44)


def results_against_ratio(summary: pd.DataFrame, *, title: str, y_title: str, legend: str) -> go.Figure:
    """Draw a share against the noise ratio: a panel per task, a line per series, 95 % intervals, chance dotted.

    `summary`: one row per task, series and ratio: those, mean, low, high, chance (fractions); ratio NaN, random
    weights, is the grey open marker left of the lines.
    """
    columns = ["task", "ratio", "series", *panels.INTERVAL, "chance"]
    require_columns(summary, columns, "results_against_ratio")
    labels = [ratio_label(ratio) for ratio in sorted(ratios_in_order(summary), key=lambda ratio: not math.isnan(ratio))]
    text = summary["ratio"].map(ratio_label)
    table = summary.assign(text=text, place=text.map(labels.index)).sort_values("place")
    marks = {str(name): series_mark(place + 3) for place, name in enumerate(summary["series"].unique())}
    dotted = {name: mark._replace(dash="dot") for name, mark in marks.items()}
    grey = {name: Mark(GREY, f"{mark.symbol}-open") for name, mark in marks.items()}
    tasks = list(summary["task"].unique())
    figure, places = panels.grid(tasks, 3, 300, (panels.NOISE_AXIS, y_title))
    for task, place in zip(tasks, places, strict=True):
        part = table[table["task"] == task]
        random = part["ratio"].isna()
        panels.add_series(figure, part[~random], "place", "mean", marks, panels.INTERVALS, place)
        panels.add_series(figure, part, "place", "chance", dotted, panels.Style("lines", "chance: %{y:.3f}"), place)
        panels.add_series(figure, part[random], "place", "mean", grey, panels.INTERVALS, place)
    figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels).update_yaxes(rangemode="tozero")
    return finish(figure, title, legend=legend)


def metric_against_accuracy(points: pd.DataFrame, metric: str, *, title: str) -> go.Figure:
    """Draw accuracy against `metric` ("sve" or "lsvr"), a data set's ratios joined in order and named at the end.

    Shown first is the change from each data set's lowest ratio, which puts all on one scale; a button shows the values
    themselves. `points`: one row per task, protocol ("ID" | "OOD") and ratio: those, accuracy (fraction) and the metric
    (nats).
    """
    values, name = ["accuracy", metric], metric.upper()
    table, marks = panels.with_roles(points, "metric_against_accuracy", *values, text=panels.PANEL)
    table = table.assign(text=table["text"].map(as_text)).sort_values("ratio")
    change = table[values] - table.groupby(["protocol", "task"])[values].transform("first")
    change = table.assign(**change.where(table["ratio"].notna()))
    views = {
        "Change from clean": _metric_panels(
            change, metric, marks, (f"{name}: change (nats)", "accuracy: change (fraction)")
        ),
        "Values": _metric_panels(table, metric, marks, (f"{name} (nats)", panels.ACCURACY)),
    }
    for view in views.values():
        finish(view, title, height=430, legend=panels.NOISE_LEGEND)
    return add_control(go.Figure(views["Change from clean"]), views, "buttons")


def _metric_panels(table: pd.DataFrame, metric: str, marks: Marks, axes: tuple[str, str]) -> go.Figure:
    """One panel per protocol: a grey line per task through its ratios, a coloured marker per ratio."""
    parts = {str(protocol): part for protocol, part in table.groupby("protocol")}
    figure, places = panels.grid(list(parts), axes=axes)
    hover = f"%{{text}}<br>%{{fullData.name}}<br>{metric.upper()} %{{x:.4f}}<br>accuracy %{{y:.4f}}"
    for place, part in zip(places, parts.values(), strict=True):
        paths = part[part["ratio"].notna()]
        for task, path in paths.groupby("task"):
            joined = panels.line(path[metric], path["accuracy"], str(task), Mark(PALE))
            figure.add_trace(joined.update(showlegend=False, hoverinfo="skip", hovertemplate=None), **place)
        panels.add_series(figure, part, metric, "accuracy", marks, panels.Style("markers", hover), place)
        for update, column in ((figure.update_xaxes, metric), (figure.update_yaxes, "accuracy")):
            low, high = part[column].min(), part[column].max()
            room = 0.2 * max(high - low, 1e-9)  # for the names of the tasks
            update(range=[low - room, high + room], **place)
        figure.add_trace(_task_names(paths, metric, 0.055 * np.ptp(part["accuracy"].dropna())), **place)
    return figure


def _task_names(paths: pd.DataFrame, metric: str, line_height: float) -> go.Scatter:
    """The name of each task beyond its last ratio, pushed up where two names would cover each other."""
    ends = paths.groupby("task").agg(x=(metric, "last"), start=(metric, "first"), y=("accuracy", "last"))
    ends = ends.sort_values("y")
    steps = line_height * np.arange(len(ends))
    side = np.where(ends["x"] < ends["start"], "middle left", "middle right")
    texts = [f"&nbsp;&nbsp;&nbsp;{as_text(task)}&nbsp;&nbsp;&nbsp;" for task in ends.index]
    names = go.Scatter(x=ends["x"], y=np.maximum.accumulate(ends["y"] - steps) + steps, text=texts, mode="text")
    return names.update(textposition=side, textfont_size=12, showlegend=False, hoverinfo="skip")


def weight_page(grid_of_weights: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw each quantity against λ, a line per term set, LP and MLP dashed; buttons give the change from MLP.

    The table (see `weight_grid`): method, weight (NaN for LP and MLP), quantity, value.
    """
    roles: dict[str, Any] = {"panel": "quantity", "series": "method"}
    table, marks = panels.with_roles(grid_of_weights, "weight_page", "weight", "value", **roles)
    baseline = table["weight"].isna()
    marks |= {name: marks[name]._replace(dash="dash") for name in table.loc[baseline, "series"].unique()}
    ends = [table[baseline].assign(weight=table["weight"].agg(end)) for end in ("min", "max")]
    table = pd.concat([*ends, table[~baseline]]).sort_values(["panel", "weight"], kind="stable")
    mlp = table["panel"].map(table[table["series"] == "MLP"].groupby("panel")["value"].first())
    views, style = {}, panels.Style(hover="%{fullData.name}<br>λ = %{x:~g}: %{y:.4f}")
    layout: dict[str, Any] = {"columns": 3, "heights": 290, "axes": ("λ (log scale)", "")}
    for label, levels in (("Values", 0.0), ("Change from MLP", mlp)):
        view, _ = panels.draw(table.assign(value=table["value"] - levels), "weight", "value", marks, style, **layout)
        view.update_xaxes(type="log", dtick=1, tickformat="~g")
        views[label] = finish(view, title, height=360, legend="Terms")
    return add_control(go.Figure(views["Values"]), views, "buttons")


def found_lines(lines: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the accuracy found so far against the noise ratio; `lines`: line (text), ratio, accuracy (fractions), n.

    A table without rows gives an empty panel.
    """
    figure = go.Figure()
    if len(lines):
        require_columns(lines, ["line", "ratio", "accuracy", "n"], "found_lines")
        table = lines.assign(series=lines["line"], text=[f"{n} results" for n in lines["n"]])
        marks = {str(name): series_mark(place) for place, name in enumerate(sorted(lines["line"].unique()))}
        style = panels.Style(hover="%{fullData.name}<br>%{x:.1%}: %{y:.4f} (%{text})")
        panels.add_series(figure, table, "ratio", "accuracy", marks, style)
    panels.ratio_axis(figure, sorted(set(lines["ratio"])))
    figure.update_xaxes(title_text=panels.NOISE_AXIS).update_yaxes(title_text=panels.ACCURACY, nticks=6)
    return finish(figure, title, height=260, legend="Pre-training")
