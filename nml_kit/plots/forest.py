"""Effects and their intervals row by row, pairs of results, and bars. Each figure's title says what it shows.

A table that lacks a column is an InvalidInputError that names it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit.inference import require_columns
from nml_kit.plots import panels
from nml_kit.plots.controls import add_control
from nml_kit.plots.panels import PANEL, Place, Role
from nml_kit.plots.theme import BLUE, ORANGE, PALE, as_text, finish, method_marks, metric_name, state_color, wrap
from nml_kit.study import largest_changes

_ROW_HEIGHT = 24  # pixels
MOST_CLASSES = 20  # shown of two results


def forest_plot(
    table: pd.DataFrame,
    *,
    panel: Role,
    row: Role,
    series: str,
    title: str,
    x_title: str = "difference in accuracy (fraction)",
    null: float | None = 0.0,
    legend: str = "",
    columns: int = 4,
    height: int = 0,
) -> go.Figure:
    """Draw `mean` and its interval `low` to `high`: a panel, a row and a mark for each value of a column of `table`.

    A panel or row may be named by several columns, as ("protocol", "task"); such rows are sorted. Up to four panels
    stand side by side and share their rows; with fewer `columns` each has its own. `height` is a row's in pixels, and
    a rule stands at `null`.
    """
    roles: dict[str, Any] = {"panel": panel, "row": row, "series": series}
    shown, marks = panels.with_roles(table, "forest_plot", *panels.INTERVAL, **roles)
    if not isinstance(row, str):
        shown = shown.sort_values("row", kind="stable")
    if null is not None:
        shown["null"] = null
    figure, _ = panels.forest(shown, marks, columns=columns, height=height, x_title=x_title)
    figure.update_xaxes(matches="x" if columns == 1 else None)
    return finish(figure, title, legend=legend or panels.LEGENDS.get(series))


def method_comparison(summary: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the methods beside each other at each noise ratio: a panel per task and protocol, 95 % intervals.

    `summary`: the columns of `accuracy_lines` (fractions). Rows of the random-initialised backbone (ratio NaN) are left
    out: they would set the scale.
    """
    roles: dict[str, Any] = {"panel": PANEL, "row": "ratio", "series": "method"}
    table, marks = panels.with_roles(panels.trained(summary), "method_comparison", *panels.INTERVAL, **roles)
    figure, _ = panels.forest(table, marks, columns=2, height=20 * len(marks), x_title=panels.ACCURACY)
    figure.update_yaxes(title_text=panels.NOISE_AXIS, col=1)
    return finish(figure, title, legend="Method")


def head_accuracy(scores: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the accuracy of heads with 95 % intervals, a panel per protocol.

    `scores`: one row per protocol and method: those, mean, low, high (fractions).
    """
    roles: dict[str, Any] = {"panel": "protocol", "row": "method", "series": "method"}
    table, marks = panels.with_roles(scores, "head_accuracy", *panels.INTERVAL, **roles)
    style = panels.FOREST._replace(spread=0)
    figure, _ = panels.forest(table, marks, height=52, x_title=panels.ACCURACY, style=style)
    figure.update_traces(mode="markers+text", texttemplate="%{x:.3f}", textposition="top center", cliponaxis=False)
    return finish(figure, title)


def claim_effects(verdicts: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw effects with plain 95 % intervals, a panel per claim and contrast, a line per task; the rule is at the null.

    `verdicts`: rows of `judge_claims`. A mark without interval comes from one seed. If no row has an effect, the
    figure says why.
    """
    columns = ["claim", "contrast", "metric", "objective", *PANEL, "effect", "low", "high", "null", "verdict", "why"]
    require_columns(verdicts, columns, "claim_effects")
    drawn = verdicts.assign(mean=verdicts["effect"]).dropna(subset="mean")
    if drawn.empty:
        return _no_effects(verdicts, title)
    row = (*PANEL, "objective") if verdicts["objective"].nunique() > 1 else PANEL
    table, marks = panels.with_roles(drawn, "claim_effects", row=row, series="verdict")
    table["panel"] = [
        f"{claim} · {contrast}" + (f", {metric.upper()}" if metric.upper() not in f"ACCURACY {contrast}" else "")
        for claim, contrast, metric in table[columns[:3]].itertuples(index=False)
    ]
    table["text"] = [
        f"{as_text(name)}: {verdict}<br>{wrap(why, 60)}"
        for name, verdict, why in table[["row", "verdict", "why"]].itertuples(index=False)
    ]
    table["order"] = pd.factorize(table["panel"])[0]
    table = table.sort_values(["order", *PANEL, "objective"], kind="stable")
    style = panels.Style("markers", "%{text}")
    figure, places = panels.forest(table, marks, columns=2, height=22, style=style)
    for (_, part), place in zip(table.groupby("order"), places, strict=True):
        metric, is_rank = part["metric"].iloc[0], "correlation" in part["contrast"].iloc[0]
        unit = panels.ACCURACY if metric == "accuracy" else metric_name(metric)
        figure.update_xaxes(title_text="rank correlation" if is_rank else f"difference in {unit}", **place)
    return finish(figure, title, legend="Verdict")


def _no_effects(verdicts: pd.DataFrame, title: str) -> go.Figure:
    reasons = verdicts.drop_duplicates(["claim", "why"]).head(6)
    lines = [wrap(f"{claim}: {why}", 90) for claim, why in zip(reasons["claim"], reasons["why"], strict=True)]
    figure = go.Figure().update_xaxes(visible=False).update_yaxes(visible=False)
    figure.add_annotation(text="<br>".join(lines), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    return finish(figure, title, height=160)


def paired_accuracies(changes: pd.DataFrame, names: Sequence[str], *, chosen: str = "", title: str) -> go.Figure:
    """Draw the accuracies of two results on each row as two joined dots: open, the first; full, the second.

    `changes`: name (text), first, second (fractions), drawn top to bottom; `names` of the two; `chosen` is bold.
    """
    require_columns(changes, ["name", "first", "second"], "paired_accuracies")
    figure = go.Figure().update_xaxes(title_text=panels.ACCURACY, nticks=6)
    _add_pairs(figure, changes, names, chosen)
    return finish(figure, title, height=110 + _ROW_HEIGHT * max(len(changes), 4), legend=" ")


def comparison_page(pairs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], *, title: str) -> go.Figure:
    """Draw tasks (left) and classes (right) of pairs of results as joined dots, with a menu of the pairs.

    `pairs`: a name (text) and the changes of tasks and of classes, as `paired_accuracies` takes them; the classes that
    change most are shown.
    """
    views, height = {}, _ROW_HEIGHT * MOST_CLASSES
    for name, (tasks, classes) in pairs.items():
        view, places = panels.grid(["Tasks", "Classes of the chosen task"], 2, height, (panels.ACCURACY, ""))
        for table, place in zip((tasks, largest_changes(classes, MOST_CLASSES)), places, strict=True):
            _add_pairs(view, table, ("first", "second"), place=place)
        views[as_text(name)] = finish(view.update_xaxes(nticks=5), title, height=110 + height, legend=" ")
    return add_control(go.Figure(next(iter(views.values()))), views, "menu")


def _add_pairs(
    figure: go.Figure, changes: pd.DataFrame, names: Sequence[str], chosen: str = "", place: Place = panels.WHOLE
) -> None:
    """Two dots for each row, orange where the second is less, and a line between them."""
    rows, change = np.arange(len(changes)), changes["second"] - changes["first"]
    joined = np.column_stack([changes["first"], changes["second"], np.full(len(changes), np.nan)]).ravel()
    between = go.Scatter(x=joined, y=np.repeat(rows, 3), mode="lines", line={"color": PALE, "width": 3})
    figure.add_trace(between.update(hoverinfo="skip", showlegend=False), **place)
    texts = [f"{as_text(name)}<br>{value:+.3f}" for name, value in zip(changes["name"], change, strict=True)]
    colors = [ORANGE if value < 0 else BLUE for value in change]
    for name, column, symbol in zip(names, ("first", "second"), ("circle-open", "circle"), strict=True):
        dots = go.Scatter(x=changes[column], y=rows, mode="markers", name=as_text(name), text=texts)
        dots.update(customdata=changes["name"], hovertemplate="%{text}<br>%{fullData.name}: %{x:.3f}<extra></extra>")
        dots.update(marker={"color": colors, "symbol": symbol, "size": 11, "line": {"width": 2}})
        figure.add_trace(dots, **place)
    labels = {name: as_text(name, 24) for name in map(str, changes["name"])}
    panels.row_axis(figure, [f"<b>{text}</b>" if name == chosen else text for name, text in labels.items()], place)


def choice_shares(selections: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw how often each candidate was chosen: a bar per candidate, grouped by method, as a share of all choices.

    `selections`: the columns of `selection_rows`.
    """
    require_columns(selections, ["method", "candidate", "chosen"], "choice_shares")
    shares = selections.groupby(["method", "candidate"], sort=False)["chosen"].mean()
    figure, marks = go.Figure(), method_marks(selections["method"])
    for method in dict.fromkeys(selections["method"]):
        part = shares.loc[method]
        bars = go.Bar(x=part.to_numpy(), y=[*map(as_text, part.index)], orientation="h", name=as_text(method))
        figure.add_trace(bars.update(marker_color=marks[method].color, hovertemplate="%{y}: %{x:.2f}<extra></extra>"))
    figure.update_yaxes(type="category", autorange="reversed", dtick=1, showgrid=False, ticks="")
    figure.update_xaxes(title_text="share of the folds in which it was chosen", range=[0, 1.02])
    return finish(figure.update_layout(bargap=0.25), title, height=90 + 19 * len(shares))


def progress_bars(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw a bar per run, as long as its seconds and coloured by its state; buttons sort them.

    `table` (see `progress_table`): run, state, seconds (NaN if it has not started).
    """
    require_columns(table, ["run", "state", "seconds"], "progress_bars")
    figure, runs = go.Figure(), [as_text(run) for run in table["run"]]
    for state, part in table.groupby("state", sort=False):
        texts = [as_text(state) if pd.isna(seconds) else f"{seconds:,.1f} s" for seconds in part["seconds"]]
        bars = go.Bar(y=[*map(as_text, part["run"])], x=part["seconds"].fillna(0), orientation="h", text=texts)
        bars.update(name=as_text(state), marker_color=state_color(str(state)), textposition="outside", cliponaxis=False)
        figure.add_trace(bars.update(hovertemplate="%{y}: %{fullData.name}<br>%{x:.1f} s<extra></extra>"))
    longest = max(table["seconds"].fillna(0).max(), 1e-9)
    figure.update_xaxes(title_text="time (s)", range=[0, 1.15 * longest], nticks=7)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=runs[::-1], showgrid=False, ticks="")
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    finish(figure, title, height=110 + 26 * max(3, len(runs)), legend="State")
    slowest = go.Figure(figure).update_yaxes(categoryorder="total ascending")
    return add_control(figure, {"As planned": go.Figure(figure), "Slowest first": slowest}, "buttons")
