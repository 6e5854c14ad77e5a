"""Figures of the pre-training itself: curves per epoch, and zero-shot results against the noise ratio."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import at_ratio, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.theme import (
    RANDOM_COLOR,
    as_text,
    epoch_axis,
    finish,
    interval_trace,
    method_marks,
    ratio_band,
    ratio_color,
    ratio_legend,
)

_HISTORY = {"loss": "training loss (nats)", "test_accuracy": "accuracy on clean test images",
            "memorised": "share of the noise memorised"}  # fmt: skip
_SUMMARY = ["task", "ratio", "series", "mean", "low", "high", "chance"]


def pretraining_curves(history: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw loss, clean accuracy and memorised share per epoch: a line per noise ratio, the mean over seeds.

    `history`: one row per ratio, seed and epoch, with loss (nats), test_accuracy and memorised (fractions, NaN where
    nothing is to memorise). Bands reach from the smallest to the largest seed. Raises InvalidInputError for missing
    columns.
    """
    require_columns(history, ["ratio", "seed", "epoch", *_HISTORY], "pretraining_curves")
    figure = make_subplots(1, 3, horizontal_spacing=0.08, subplot_titles=list(_HISTORY.values()))
    for ratio in ratios_in_order(history):
        by_epoch = at_ratio(history, ratio).groupby("epoch")
        for column, quantity in enumerate(_HISTORY, start=1):
            line = by_epoch[quantity].agg(["mean", "min", "max"]).dropna()
            if line.empty:
                continue
            if by_epoch["seed"].nunique().max() > 1:
                figure.add_trace(ratio_band(line.index, line["min"], line["max"], ratio), 1, column)
            trace = go.Scatter(x=line.index, y=line["mean"], mode="lines+markers", marker={"size": 5})
            trace.update(line={"color": ratio_color(ratio), "width": 2})
            trace.hovertemplate = f"{ratio_label(ratio)}<br>epoch %{{x}}<br>%{{y:.3f}}<extra></extra>"
            figure.add_trace(trace.update(ratio_legend(ratio, shown=column == 1)), 1, column)
    epoch_axis(figure, int(history["epoch"].max()))
    figure.update_yaxes(rangemode="tozero")
    return finish(figure, title, height=360, legend="Noise in pre-training")


def results_against_ratio(summary: pd.DataFrame, *, title: str, y_title: str, legend: str) -> go.Figure:
    """Draw a share against the noise ratio: a panel per task, a line per series, 95 % intervals, chance dotted.

    `summary`: one row per task, series and ratio: those, mean, low, high, chance (fractions); ratio NaN, random
    weights, is the grey open marker left of the lines. Raises InvalidInputError for missing columns.
    """
    require_columns(summary, _SUMMARY, "results_against_ratio")
    tasks = list(dict.fromkeys(summary["task"]))
    figure = make_subplots(1, len(tasks), horizontal_spacing=0.08, subplot_titles=[as_text(task) for task in tasks])
    marks = _series_marks(summary["series"])
    ratios = ratios_in_order(summary)
    places = {ratio_label(ratio): place for place, ratio in enumerate([*ratios[-1:], *ratios[:-1]]
              if math.isnan(ratios[-1]) else ratios)}  # fmt: skip
    for column, task in enumerate(tasks, start=1):
        for series, (color, symbol) in marks.items():
            part = summary[(summary["task"] == task) & (summary["series"] == series)]
            part = part.assign(place=[places[ratio_label(ratio)] for ratio in part["ratio"]]).sort_values("place")
            for trace in _series_traces(part, str(series), color, symbol):
                figure.add_trace(trace.update(showlegend=bool(trace.showlegend) and column == 1), 1, column)
    figure.update_xaxes(tickvals=list(places.values()), ticktext=list(places), title_text="noise in pre-training")
    figure.update_yaxes(rangemode="tozero").update_yaxes(title_text=y_title, col=1)
    return finish(figure, title, height=380, legend=legend)


def _series_marks(series: pd.Series) -> dict[str, tuple[str, str]]:
    """Marks in the order in which the series come, not that of their names."""
    names = list(dict.fromkeys(map(str, series)))
    return dict(zip(names, method_marks([f"series {place}" for place in range(len(names))]).values(), strict=True))


def _series_traces(part: pd.DataFrame, series: str, color: str, symbol: str) -> list[go.Scatter]:
    """Trained networks, joined; the random one apart; chance under both."""
    random, traces = part["ratio"].isna(), []
    for rows, shade, mark in ((part[~random], color, symbol), (part[random], RANDOM_COLOR, f"{symbol}-open")):
        trace = interval_trace(rows, "place", "mean", series, (shade, mark))
        traces.append(trace.update(mode="lines+markers", showlegend=shade == color))
    chance = go.Scatter(x=part["place"], y=part["chance"], mode="lines", line={"color": color, "dash": "dot"})
    chance.update(hovertemplate=f"chance of {as_text(series)}<br>%{{y:.3f}}<extra></extra>", showlegend=False)
    return [chance.update(legendgroup=as_text(series)), *traces]
