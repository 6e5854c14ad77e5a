"""Figures and a table of runs: what each is doing, for how long, and the accuracies found so far."""

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from nml_kit.inference import ratio_label, require_columns
from nml_kit.plots.theme import as_text, finish

_STATE_COLORS = {"done": "#009E73", "hit": "#009E73", "running": "#0072B2", "waiting": "#8a8f98", "skipped": "#c3c7ce",
                 "interrupted": "#E69F00"}  # fmt: skip
_BAD = "#D55E00"
_CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0;"
_COLUMNS = ("state", "seconds", "run", "error", "result")  # what a narrow page shows first
_WRAPPING = {"run": "overflow-wrap:anywhere;min-width:100px", "error": "overflow-wrap:anywhere;min-width:120px",
             "result": "min-width:110px"}  # fmt: skip


def state_color(state: str) -> str:
    """The colour of a run's state; states that need someone's attention share one.

    >>> state_color("failed") == state_color("kernel died")
    True
    """
    return _STATE_COLORS.get(state, _BAD)


def progress_html(table: pd.DataFrame, heading: str) -> str:
    """The runs of a `progress_table` as HTML, without a column of errors if there is none; all texts are escaped."""
    names = [name for name in _COLUMNS if name != "error" or table["error"].any()]
    head = "".join(f'<th style="{_CELL}">{html.escape(name)}</th>' for name in names)
    rows = [
        "".join(_cell(name, value) for name, value in zip(names, row, strict=True)) for row in table[names].to_numpy()
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    top = f'<p style="margin:4px 0;line-height:1.4"><b>{html.escape(heading)}</b></p>'
    return f'{top}<table style="font-size:13px;line-height:1.4"><tr>{head}</tr>{body}</table>' if rows else top


def _cell(name: str, value: Any) -> str:
    text = html.escape(str(value))
    if name == "seconds":
        text = "" if pd.isna(value) else f"{value:,.1f}"
    if name == "state":
        text = f'<span style="color:{state_color(str(value))}">●</span> {text}'
    return f'<td style="{_CELL}{_WRAPPING.get(name, "white-space:nowrap")}">{text}</td>'


def progress_bars(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw a bar per run, as long as its seconds and coloured by its state; buttons sort them.

    `table` (see `progress_table`): run, state, seconds (NaN if it has not started). Raises InvalidInputError for
    missing columns or no run.
    """
    require_columns(table, ["run", "state", "seconds"], "progress_bars")
    figure, runs = go.Figure(), [as_text(run) for run in table["run"]]
    for state, part in table.groupby("state", sort=False):
        texts = [as_text(state) if pd.isna(seconds) else f"{seconds:,.1f} s" for seconds in part["seconds"]]
        bars = go.Bar(y=[as_text(run) for run in part["run"]], x=part["seconds"].fillna(0), orientation="h", text=texts)
        bars.update(name=as_text(state), marker_color=state_color(str(state)), textposition="outside", cliponaxis=False)
        bars.hovertemplate = f"%{{y}}: {as_text(state)}<br>%{{x:.1f}} s<extra></extra>"
        figure.add_trace(bars)
    longest = max(table["seconds"].max(), 1e-9) if table["seconds"].notna().any() else 1.0
    figure.update_xaxes(title_text="time (s)", range=[0, 1.15 * longest], nticks=7)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=runs[::-1], showgrid=False, ticks="")
    orders = {"As planned": {"yaxis.categoryorder": "array", "yaxis.categoryarray": runs[::-1]},
              "Slowest first": {"yaxis.categoryorder": "total ascending"}}  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    finish(figure, title, height=110 + 26 * max(3, len(runs)), legend="State")
    buttons = [{"label": label, "method": "relayout", "args": [change]} for label, change in orders.items()]
    menu = {"type": "buttons", "direction": "right", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    return figure.update_layout(
        updatemenus=[{**menu, "buttons": buttons, "bgcolor": "white", "font": {"size": 12}, "pad": {"b": 6}}]
    )


def found_lines(lines: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the accuracy found so far against the noise ratio; `lines`: line (text), ratio, accuracy (fractions), n.

    A table without rows gives an empty panel. Raises InvalidInputError for missing columns.
    """
    figure = go.Figure()
    if len(lines):
        require_columns(lines, ["line", "ratio", "accuracy", "n"], "found_lines")
    for name, part in lines.groupby("line"):
        line = go.Scatter(x=part["ratio"], y=part["accuracy"], mode="lines+markers", name=as_text(name))
        line.update(customdata=part["n"], marker_size=8, line_width=2)
        line.hovertemplate = f"{as_text(name)}<br>%{{x:.1%}}: %{{y:.4f}} (%{{customdata}} results)<extra></extra>"
        figure.add_trace(line)
    ratios = sorted(set(lines["ratio"]))
    figure.update_xaxes(title_text="noise in pre-training", tickvals=ratios, ticktext=[ratio_label(r) for r in ratios])
    figure.update_yaxes(title_text="accuracy (fraction)", nticks=6)
    return finish(figure, title, height=260, legend="Pre-training")
