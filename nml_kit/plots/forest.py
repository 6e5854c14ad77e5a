"""Effects and their intervals row by row, pairs of results, and bars. Each figure's title says what it shows.

A table that lacks a column is an InvalidInputError that names it.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit.inference import panel_names, ratio_label, ratios_in_order, require_columns
from nml_kit.plots.controls import add_control
from nml_kit.plots.panels import ACCURACY, NOISE_AXIS, NOISE_LEGEND, Look, Place, forest, grid, row_axis, trained
from nml_kit.plots.theme import (
    BLUE,
    METRIC_NAMES,
    ORANGE,
    PALE,
    PROTOCOL_MARKS,
    VERDICT_MARKS,
    as_text,
    finish,
    method_marks,
    ratio_marks,
    state_color,
    wrap,
)
from nml_kit.study import largest_changes

_INTERVAL = ["mean", "low", "high"]
_DIFFERENCE = "difference in accuracy (fraction)"
_ROW_HEIGHT = 24  # pixels
MOST_CLASSES = 20  # shown of two results


def method_comparison(summary: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the methods beside each other at each noise ratio: a panel per task and protocol, 95 % intervals.

    `summary`: the columns of `accuracy_against_ratio` (fractions). Rows of the random-initialised backbone (ratio
    NaN) are left out: they would set the scale.
    """
    columns = ["task", "protocol", "method", "ratio", *_INTERVAL]
    table = trained(summary, columns, "method_comparison").drop(columns="text")
    table = table.assign(row=table["ratio"].map(ratio_label), series=table["method"])
    marks = method_marks(table["method"])
    figure, _ = forest(table, marks, shared=False, row_height=20 * len(marks), x_title=ACCURACY)
    figure.update_yaxes(title_text=NOISE_AXIS, col=1)
    return finish(figure, title, legend="Method")


def method_differences(differences: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw paired differences in accuracy with 95 % intervals: right of zero, the method named first is better.

    `differences`: one row per task, protocol, comparison (such as "NMTune − LP") and ratio: those, mean, low, high
    (fractions).
    """
    require_columns(differences, ["task", "protocol", "comparison", "ratio", *_INTERVAL], "method_differences")
    names: Look = {"panel": differences["comparison"], "row": panel_names(differences), "null": 0.0}
    table = differences.assign(**names, series=differences["ratio"].map(ratio_label)).sort_values("row", kind="stable")
    marks = ratio_marks(ratios_in_order(differences))
    figure, _ = forest(table, marks, columns=4, x_title=_DIFFERENCE)
    return finish(figure, title, legend=NOISE_LEGEND)


def variant_effects(differences: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw differences in accuracy with 95 % intervals: a line for each variant, a panel per group, ID and OOD apart.

    `differences`: one row per group, method and protocol: those, mean, low, high (fractions), in the order to show.
    """
    require_columns(differences, ["group", "method", "protocol", *_INTERVAL], "variant_effects")
    names: Look = {"group": "panel", "method": "row", "protocol": "series"}
    table = differences.drop(columns=[*names.values()], errors="ignore").rename(columns=names).assign(null=0.0)
    figure, _ = forest(table, PROTOCOL_MARKS, columns=1, shared=False, row_height=26, x_title=_DIFFERENCE)
    figure.update_xaxes(matches="x")
    return finish(figure, title, legend="Protocol")


def changes_by_variant(changes: pd.DataFrame, *, title: str, legend: str) -> go.Figure:
    """Draw changes from clean to noisy pre-training, a panel per quantity, a row per panel name, a mark per variant.

    `changes`: one row per quantity (text, with its unit), panel ("ID · icons") and variant: those, mean, low, high.
    `legend` says what the variants are.
    """
    require_columns(changes, ["quantity", "panel", "variant", *_INTERVAL], "changes_by_variant")
    names: Look = {"panel": changes["quantity"], "row": changes["panel"], "series": changes["variant"], "null": 0.0}
    marks = method_marks(changes["variant"])
    figure, _ = forest(changes.assign(**names).sort_values("row", kind="stable"), marks, columns=4)
    return finish(figure, title, legend=legend if len(marks) > 1 else None)


def metric_by_choice(bands: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw metrics under several choices of computation: a panel per metric, a row per choice, a mark per noise ratio.

    `bands`: one row per metric, choice (text) and ratio: those, mean, low, high (smallest and largest seed). Where the
    distance between choices exceeds that between ratios, the choice matters more than the noise.
    """
    require_columns(bands, ["metric", "choice", "ratio", *_INTERVAL], "metric_by_choice")
    names: Look = {"panel": [METRIC_NAMES.get(name, name) for name in bands["metric"]], "row": bands["choice"]}
    table = bands.assign(**names, series=bands["ratio"].map(ratio_label))
    figure, _ = forest(table, ratio_marks(ratios_in_order(bands)), columns=4, row_height=40)
    return finish(figure, title, legend=NOISE_LEGEND)


def method_costs(costs: pd.DataFrame, *, title: str, x_title: str) -> go.Figure:
    """Draw what methods cost on a log scale: a panel per step, a row per task, a mark per method.

    `costs`: one row per task, method and step: those, median, low, high (above 0, smallest and largest repeat), all of
    one quantity, which `x_title` names.
    """
    require_columns(costs, ["task", "method", "step", "median", "low", "high"], "method_costs")
    names: Look = {"panel": costs["step"], "row": costs["task"], "series": costs["method"], "mean": costs["median"]}
    figure, _ = forest(costs.assign(**names), method_marks(costs["method"]), columns=4)
    figure.update_xaxes(title_text=f"{x_title} (log scale)", type="log", dtick="D2", tickformat="~g")
    return finish(figure, title, legend="Method")


def head_accuracy(scores: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw the accuracy of heads with 95 % intervals, a panel per protocol.

    `scores`: one row per protocol and method: those, mean, low, high (fractions).
    """
    require_columns(scores, ["protocol", "method", *_INTERVAL], "head_accuracy")
    table = scores.assign(panel=scores["protocol"], row=scores["method"], series=scores["method"])
    look: Look = {"row_height": 52, "x_title": ACCURACY, "spread": 0}
    figure, _ = forest(table, method_marks(scores["method"]), columns=4, **look)
    figure.update_traces(mode="markers+text", texttemplate="%{x:.3f}", textposition="top center", cliponaxis=False)
    return finish(figure, title)


def claim_effects(verdicts: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw effects with plain 95 % intervals, a panel per claim and contrast, a line per task; the rule is at the null.

    `verdicts`: rows of `judge_claims`. A mark without interval comes from one seed. If no row has an effect, the
    figure says why.
    """
    keys = ["claim", "contrast", "metric"]
    columns = [*keys, "objective", "task", "protocol", "effect", "low", "high", "null", "verdict", "why"]
    require_columns(verdicts, columns, "claim_effects")
    drawn = verdicts[verdicts["effect"].notna()]
    if drawn.empty:
        return _no_effects(verdicts, title)
    rows = drawn["protocol"] + " · " + drawn["task"]
    if verdicts["objective"].nunique() > 1:
        rows += " · " + drawn["objective"]
    whys = [f"{as_text(row)}: {verdict}<br>{wrap(why, 60)}"
            for row, verdict, why in zip(rows, drawn["verdict"], drawn["why"], strict=True)]  # fmt: skip
    panels = [_claim_name(*key) for key in drawn[keys].itertuples(index=False)]
    table = drawn.assign(panel=panels, row=rows, text=whys, mean=drawn["effect"], series=drawn["verdict"])
    table["order"] = table["panel"].map(list(dict.fromkeys(panels)).index)
    table = table.sort_values(["order", "protocol", "task", "objective"], kind="stable")
    figure, places = forest(table, VERDICT_MARKS, shared=False, row_height=22, hover="%{text}", spread=0)
    for (_, part), place in zip(table.groupby("order"), places, strict=True):
        unit = f"difference in {METRIC_NAMES.get(part['metric'].iloc[0], ACCURACY)}"
        is_rank = "correlation" in part["contrast"].iloc[0]
        figure.update_xaxes(title_text="rank correlation" if is_rank else unit, **place)
    return finish(figure, title, legend="Verdict")


def _claim_name(claim: str, contrast: str, metric: str) -> str:
    spectral = metric != "accuracy" and metric.upper() not in contrast
    return f"{claim} · {contrast}" + (f", {metric.upper()}" if spectral else "")


def _no_effects(verdicts: pd.DataFrame, title: str) -> go.Figure:
    reasons = verdicts.drop_duplicates(["claim", "why"]).head(6)
    lines = [wrap(f"{claim}: {why}", 90) for claim, why in zip(reasons["claim"], reasons["why"], strict=True)]
    figure = go.Figure().update_xaxes(visible=False).update_yaxes(visible=False)
    figure.add_annotation(text="<br>".join(lines), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    return finish(figure, title, height=160)


def paired_accuracies(changes: pd.DataFrame, names: tuple[str, str], *, chosen: str = "", title: str) -> go.Figure:
    """Draw the accuracies of two results on each row as two joined dots: open, the first; full, the second.

    `changes`: name (text), first, second (fractions), drawn top to bottom; `names` of the two; `chosen` is bold.
    """
    require_columns(changes, ["name", "first", "second"], "paired_accuracies")
    figure = go.Figure()
    _add_pairs(figure, changes, names, chosen=chosen)
    figure.update_xaxes(title_text=ACCURACY, nticks=6)
    return finish(figure, title, height=110 + _ROW_HEIGHT * max(len(changes), 4), legend=" ")


def comparison_page(pairs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], *, title: str) -> go.Figure:
    """Draw tasks (left) and classes (right) of pairs of results as joined dots, with a menu of the pairs.

    `pairs`: a name (text) and the changes of tasks and of classes, as `paired_accuracies` takes them; the classes that
    change most are shown.
    """
    views, height = {}, _ROW_HEIGHT * MOST_CLASSES
    for name, (tasks, classes) in pairs.items():
        view, places = grid(["Tasks", "Classes of the chosen task"], heights=height, x_title=ACCURACY)
        for table, place in zip((tasks, largest_changes(classes, MOST_CLASSES)), places, strict=True):
            _add_pairs(view, table, ("first", "second"), place)
        views[as_text(name)] = finish(view.update_xaxes(nticks=5), title, height=110 + height, legend=" ")
    return add_control(go.Figure(next(iter(views.values()))), views, "menu")


def _add_pairs(
    figure: go.Figure, changes: pd.DataFrame, names: tuple[str, str], place: Place | None = None, *, chosen: str = ""
) -> None:
    """Two dots for each row, orange where the second is less, and a line between them."""
    rows, change = np.arange(len(changes)), changes["second"] - changes["first"]
    joined = np.column_stack([changes["first"], changes["second"], np.full(len(changes), np.nan)]).ravel()
    between = go.Scatter(x=joined, y=np.repeat(rows, 3), mode="lines", line={"color": PALE, "width": 3})
    figure.add_trace(between.update(hoverinfo="skip", showlegend=False), **place or {})
    texts = [f"{as_text(name)}<br>{value:+.3f}" for name, value in zip(changes["name"], change, strict=True)]
    colors = [ORANGE if value < 0 else BLUE for value in change]
    for name, column, symbol in zip(names, ("first", "second"), ("circle-open", "circle"), strict=True):
        dots = go.Scatter(x=changes[column], y=rows, mode="markers", name=as_text(name), text=texts)
        dots.update(customdata=changes["name"], hovertemplate="%{text}<br>%{fullData.name}: %{x:.3f}<extra></extra>")
        dots.update(marker={"color": colors, "symbol": symbol, "size": 11, "line": {"width": 2}})
        figure.add_trace(dots, **place or {})
    labels = {name: as_text(name, 24) for name in map(str, changes["name"])}
    row_axis(figure, [f"<b>{text}</b>" if name == chosen else text for name, text in labels.items()], place)


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
