"""Lines over noise ratios, shares of the samples, epochs and weights. Each figure's title says what it shows.

A table that lacks a column is an InvalidInputError that names it.
"""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit.inference import panel_names, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.controls import add_control
from nml_kit.plots.panels import (
    ACCURACY,
    INTERVAL,
    NOISE_AXIS,
    NOISE_LEGEND,
    Look,
    Place,
    add_series,
    grid,
    line,
    panels,
    ratio_axis,
    trained,
)
from nml_kit.plots.theme import GREY, PALE, Mark, as_text, finish, method_marks, ratio_color, ratio_marks, series_mark

_SHARES = {"fraction": "share of the train samples", "label_noise": "flipped downstream labels"}
_HISTORY = {"loss": "training loss (nats)", "memorised": "share of the noise memorised",
            "test_accuracy": "accuracy on clean test images"}  # fmt: skip
_APART = 0.04  # of an axis: over it lie the methods at one ratio


def accuracy_against_ratio(summary: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw accuracy against the noise ratio: a panel per task and protocol, a line per method, 95 % intervals.

    `summary`: one row per task, protocol, method and ratio: those, mean, low, high (fractions). Rows with ratio NaN,
    the random-initialised backbone, become a number and, where it leaves the lines their room, a dotted line.
    """
    columns = ["task", "protocol", "method", "ratio", "mean", "low", "high"]
    table = trained(summary, columns, "accuracy_against_ratio").assign(series=lambda rows: rows["method"])
    ratios, marks = ratios_in_order(table), method_marks(table["method"])
    apart = _APART * np.ptp(ratios)
    figure, places = panels(table, "ratio", "mean", marks, {"x_title": NOISE_AXIS}, hover=INTERVAL, spread=apart)
    random = summary[summary["ratio"].isna()]
    best = random["mean"].groupby(panel_names(random)).max()
    for number, (panel, part) in enumerate(table.groupby("panel", sort=False)):
        if panel in best:
            _add_random(figure, number, places[number], best[panel], part["low"].min(), part["high"].max())
    ratio_axis(figure, ratios)
    return finish(figure, title, legend="Method")


def _add_random(figure: go.Figure, number: int, place: Place, value: float, low: float, high: float) -> None:
    words = f'  <span style="font-size:12px;color:{GREY}">random init {value:.3f}</span>'
    figure.layout.annotations[number].text += words
    if 2 * low - high <= value <= 2 * high - low:
        figure.add_hline(y=value, line={"color": GREY, "dash": "dot"}, **place)


def accuracy_against_share(summary: pd.DataFrame, share: str, *, title: str) -> go.Figure:
    """Draw accuracy against `share` ("fraction" or "label_noise"): a panel per task and protocol, a line per ratio.

    `summary`: one row per task, protocol, ratio and share: those, mean, low, high (fractions); the random-initialised
    backbone (ratio NaN) is left out.
    """
    columns = ["task", "protocol", "ratio", share, "mean", "low", "high"]
    table = trained(summary, columns, "accuracy_against_share").sort_values(["protocol", "task", share])
    table = table.assign(series=table["text"], text=table[share].map(ratio_label))
    shares, marks = sorted(table[share].unique()), ratio_marks(ratios_in_order(table))
    layout, apart = {"x_title": _SHARES.get(share, share)}, _APART * np.ptp(shares)
    figure, _ = panels(table, share, "mean", marks, layout, hover=INTERVAL, spread=apart)
    ratio_axis(figure, shares)
    return finish(figure, title, legend=NOISE_LEGEND)


def method_lines(summary: pd.DataFrame, share: str, *, title: str) -> go.Figure:
    """Draw accuracy against `share`: a row of panels per protocol, a panel per noise ratio, a line per method.

    `summary`: one row per protocol, ratio, method and share: those, mean, low, high (fractions); the random-initialised
    backbone (ratio NaN) is left out.
    """
    columns = ["protocol", "ratio", "method", share, "mean", "low", "high"]
    table = trained(summary, columns, "method_lines").sort_values(["protocol", "ratio", share])
    table = table.assign(panel=table["protocol"] + " · " + table["text"], series=table["method"])
    table["text"] = table[share].map(ratio_label)
    layout: Look = {"columns": table["ratio"].nunique(), "shared": True, "x_title": _SHARES.get(share, share)}
    figure, _ = panels(table, share, "mean", method_marks(table["method"]), layout, hover=INTERVAL)
    ratio_axis(figure, sorted(table[share].unique()))
    return finish(figure, title, legend="Method")


def pretraining_curves(history: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw loss, clean accuracy and memorised share per epoch: a line per noise ratio, the mean over seeds.

    `history`: one row per ratio, seed and epoch, with loss (nats), test_accuracy and memorised (fractions, NaN where
    nothing is to memorise). Bands reach from the smallest to the largest seed.
    """
    require_columns(history, ["ratio", "seed", "epoch", *_HISTORY], "pretraining_curves")
    history = history.assign(series=history["ratio"].map(ratio_label))
    marks = ratio_marks(ratios_in_order(history))
    figure = _epochs(history, ["loss", "test_accuracy", "memorised"], marks, ["low", "high"])
    return finish(figure, title, height=360, legend=NOISE_LEGEND)


def memorisation_curves(curves: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw what pre-training learns and memorises over its epochs: a row of two panels, a dash and a mark per variant.

    `curves`: one row per variant (text), ratio, seed and epoch: those, memorised and test_accuracy (fractions). Lines
    are means over seeds.
    """
    quantities = ["test_accuracy", "memorised"]
    require_columns(curves, ["variant", "ratio", "seed", "epoch", *quantities], "memorisation_curves")
    styles = dict(zip(curves["variant"].unique(), ("solid", "dash", "dot", "dashdot", "longdash"), strict=False))
    marks = {f"{variant}, {ratio_label(ratio)}": Mark(ratio_color(ratio), series_mark(place).symbol, dash)
             for ratio in ratios_in_order(curves) for place, (variant, dash) in enumerate(styles.items())}  # fmt: skip
    curves = curves.assign(series=curves["variant"] + ", " + curves["ratio"].map(ratio_label))
    figure = finish(_epochs(curves, quantities, marks, []), title, height=330 + 20 * len(marks), legend=" ")
    # The legend lies below: one entry for each pair of variant and ratio would not fit above.
    below = {"orientation": "v", "x": 0, "xref": "paper", "y": -0.22, "yref": "paper", "yanchor": "top"}
    return figure.update_layout(legend=below, margin_t=figure.layout.margin.t - 44, height=figure.layout.height - 44)


def _epochs(history: pd.DataFrame, quantities: list[str], marks: dict[str, Mark], edges: list[str]) -> go.Figure:
    """A panel per quantity: the mean over seeds of each series, and the `edges` of its band."""
    long = history.melt(["series", "epoch", "seed"], quantities, "quantity").dropna()
    long["panel"] = pd.Categorical(long["quantity"].map(_HISTORY), [_HISTORY[name] for name in quantities])
    by = long.groupby(["panel", "series", "epoch"], observed=True)["value"]
    means = by.agg(mean="mean", low="min", high="max").reset_index()[["panel", "series", "epoch", "mean", *edges]]
    layout: Look = {"y_title": "", "columns": len(quantities), "x_title": "epoch"}
    figure, _ = panels(means, "epoch", "mean", marks, layout, interval="band")
    figure.update_xaxes(tick0=0, dtick=max(1, math.ceil(history["epoch"].max() / 7)))
    return figure.update_yaxes(rangemode="tozero")


def results_against_ratio(summary: pd.DataFrame, *, title: str, y_title: str, legend: str) -> go.Figure:
    """Draw a share against the noise ratio: a panel per task, a line per series, 95 % intervals, chance dotted.

    `summary`: one row per task, series and ratio: those, mean, low, high, chance (fractions); ratio NaN, random
    weights, is the grey open marker left of the lines.
    """
    columns = ["task", "ratio", "series", "mean", "low", "high", "chance"]
    require_columns(summary, columns, "results_against_ratio")
    labels = [ratio_label(ratio) for ratio in sorted(ratios_in_order(summary), key=lambda ratio: not math.isnan(ratio))]
    text = summary["ratio"].map(ratio_label)
    table = summary.assign(text=text, place=text.map(labels.index)).sort_values("place")
    marks = {str(name): series_mark(place + 3) for place, name in enumerate(summary["series"].unique())}
    tasks = list(summary["task"].unique())
    figure, places = grid(tasks, columns=3, heights=300, x_title=NOISE_AXIS, y_title=y_title)
    for task, place in zip(tasks, places, strict=True):
        part = table[table["task"] == task]
        random = part["ratio"].isna()
        add_series(figure, part[~random], "place", "mean", marks, place, hover=INTERVAL)
        for name, mark in marks.items():
            rows = part[part["series"] == name]
            chance = line(rows["place"], rows["chance"], name, mark._replace(dash="dot"), hover="chance: %{y:.3f}")
            figure.add_trace(chance.update(showlegend=False), **place)
            grey = {name: Mark(GREY, f"{mark.symbol}-open")}
            add_series(figure, part[random], "place", "mean", grey, place, hover=INTERVAL)
    figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels).update_yaxes(rangemode="tozero")
    return finish(figure, title, legend=legend)


def metric_against_accuracy(points: pd.DataFrame, metric: str, *, title: str) -> go.Figure:
    """Draw accuracy against `metric` ("sve" or "lsvr"), a data set's ratios joined in order and named at the end.

    Shown first is the change from each data set's lowest ratio, which puts all on one scale; a button shows the values
    themselves. `points`: one row per task, protocol ("ID" | "OOD") and ratio: those, accuracy (fraction) and the metric
    (nats).
    """
    require_columns(points, ["task", "protocol", "ratio", "accuracy", metric], "metric_against_accuracy")
    points = points.sort_values("ratio")
    first = points.groupby(["protocol", "task"])[[metric, "accuracy"]].transform("first")
    change = points.assign(**(points[[metric, "accuracy"]] - first).where(points["ratio"].notna()))
    titles = f"{metric.upper()}: change (nats)", "accuracy: change (fraction)"
    views = {"Change from clean": _metric_panels(change, metric, *titles),
             "Values": _metric_panels(points, metric, f"{metric.upper()} (nats)", ACCURACY)}  # fmt: skip
    for view in views.values():
        finish(view, title, height=430, legend=NOISE_LEGEND)
    return add_control(go.Figure(views["Change from clean"]), views, "buttons")


def _metric_panels(points: pd.DataFrame, metric: str, x_title: str, y_title: str) -> go.Figure:
    """One panel per protocol: a grey line per task through its ratios, a coloured marker per ratio."""
    points = points.assign(series=points["ratio"].map(ratio_label), text=[*map(as_text, panel_names(points))])
    marks = ratio_marks(ratios_in_order(points))
    parts = {str(protocol): part for protocol, part in points.groupby("protocol")}
    figure, places = grid(list(parts), y_title=y_title)
    hover = f"%{{text}}<br>%{{fullData.name}}<br>{metric.upper()} %{{x:.4f}}<br>accuracy %{{y:.4f}}"
    for place, part in zip(places, parts.values(), strict=True):
        paths = part[part["ratio"].notna()]
        for task, path in paths.groupby("task"):
            joined = line(path[metric], path["accuracy"], str(task), Mark(PALE))
            figure.add_trace(joined.update(showlegend=False, hoverinfo="skip", hovertemplate=None), **place)
        add_series(figure, part, metric, "accuracy", marks, place, mode="markers", hover=hover)
        for update, column in ((figure.update_xaxes, metric), (figure.update_yaxes, "accuracy")):
            low, high = part[column].min(), part[column].max()
            room = 0.2 * max(high - low, 1e-9)  # for the names of the tasks
            update(range=[low - room, high + room], **place)
        figure.add_trace(_task_names(paths, metric, 0.055 * np.ptp(part["accuracy"].dropna())), **place)
    return figure.update_xaxes(title_text=x_title)


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
    require_columns(grid_of_weights, ["method", "weight", "quantity", "value"], "weight_page")
    table = grid_of_weights.rename(columns={"quantity": "panel", "method": "series"})
    baseline, marks = table["weight"].isna(), method_marks(table["series"])
    marks |= {name: marks[name]._replace(dash="dash") for name in table.loc[baseline, "series"].unique()}
    ends = [table[baseline].assign(weight=table["weight"].agg(end)) for end in ("min", "max")]
    table = pd.concat([*ends, table[~baseline]]).sort_values(["panel", "weight"], kind="stable")
    mlp = table["panel"].map(table[table["series"] == "MLP"].groupby("panel")["value"].first())
    views = {}
    for label, levels in (("Values", 0.0), ("Change from MLP", mlp)):
        shown = table.assign(value=table["value"] - levels)
        layout: Look = {"columns": 3, "heights": 290, "x_title": "λ (log scale)", "y_title": ""}
        view, _ = panels(shown, "weight", "value", marks, layout, hover="%{fullData.name}<br>λ = %{x:~g}: %{y:.4f}")
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
        add_series(figure, table, "ratio", "accuracy", marks, hover="%{fullData.name}<br>%{x:.1%}: %{y:.4f} (%{text})")
    ratio_axis(figure, sorted(set(lines["ratio"])))
    figure.update_xaxes(title_text=NOISE_AXIS).update_yaxes(title_text=ACCURACY, nticks=6)
    return finish(figure, title, height=260, legend="Pre-training")
