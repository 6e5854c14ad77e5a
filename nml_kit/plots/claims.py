"""Forest plots of verdicts: each effect with its interval, marked by what was decided."""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nml_kit.inference import VERDICTS, require_columns
from nml_kit.plots.theme import INK, as_text, error_bar, finish, wrap

_MARKS = dict(zip(VERDICTS, (("#0072B2", "circle"), ("#D55E00", "diamond"), ("#8a8f98", "circle-open")), strict=True))
_UNITS = {"accuracy": "accuracy (fraction)", "sve": "SVE (nats)", "lsvr": "LSVR (nats)"}
_NEEDED = [
    *("claim", "objective", "task", "protocol", "metric", "contrast", "effect", "low", "high", "null", "verdict", "why")
]
_ROW, _GAP = 22, 84  # pixels: of a task; between rows of panels


def claim_effects(verdicts: pd.DataFrame, *, title: str) -> go.Figure:
    """Draw effects with plain 95 % intervals, a panel per claim and contrast, a line per task; the rule is at the null.

    `verdicts`: rows of `claims.judge_claims`. A mark without interval comes from one seed. If no row has an effect, the
    figure says why. Raises InvalidInputError for missing columns or an empty table.
    """
    require_columns(verdicts, _NEEDED, "claim_effects")
    drawn = verdicts[verdicts["effect"].notna()]
    if drawn.empty:
        return _nothing(verdicts, title)
    panels = [part for _, part in drawn.groupby(["claim", "contrast", "metric"], sort=False)]
    figure, height = _grid(panels)
    seen = set[str]()
    several = verdicts["objective"].nunique() > 1
    for place, part in enumerate(panels):
        _add_panel(figure, part, {"row": place // 2 + 1, "col": place % 2 + 1}, seen, several=several)
    return finish(figure, title, height=height, legend="Verdict")


def _grid(panels: list[pd.DataFrame]) -> tuple[go.Figure, int]:
    """Empty panels, two to a row, as high as their tasks need, and the height of all in pixels."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    heights = [_ROW * (1 + max(len(part) for part in panels[2 * row : 2 * row + 2])) for row in range(rows)]
    inner = sum(heights) + _GAP * (rows - 1)
    specs: list[list[dict[str, Any] | None]] = [
        [{} if columns * row + column < len(panels) else None for column in range(columns)] for row in range(rows)
    ]
    titles = [_panel_title(*part[["claim", "contrast", "metric"]].iloc[0]) for part in panels]
    spacing = {"horizontal_spacing": 0.22, "vertical_spacing": _GAP / inner if rows > 1 else 0}
    return make_subplots(rows, columns, subplot_titles=titles, row_heights=heights, specs=specs, **spacing), inner + 70


def _add_panel(figure: go.Figure, part: pd.DataFrame, cell: dict[str, int], seen: set[str], *, several: bool) -> None:
    part = part.sort_values(["protocol", "task", "objective"])
    names = [_name(row, several) for row in part.itertuples(index=False)]
    part = part.assign(mean=part["effect"], place=range(len(part)), name=names)
    for verdict, mark in _MARKS.items():
        chosen = part[part["verdict"] == verdict]
        if not chosen.empty:
            figure.add_trace(_marks(chosen, verdict, mark, shown=verdict not in seen), **cell)
            seen.add(verdict)
    figure.add_vline(x=part["null"].iloc[0], line={"color": INK, "width": 1}, **cell)
    metric, contrast = part["metric"].iloc[0], part["contrast"].iloc[0]
    unit = "rank correlation" if "correlation" in contrast else f"difference in {_UNITS.get(metric, metric)}"
    figure.update_xaxes(title_text=unit, nticks=6, **cell)
    ticks = {"tickvals": part["place"], "ticktext": [as_text(name) for name in names], "showgrid": False, "ticks": ""}
    figure.update_yaxes(range=[len(part) - 0.5, -0.5], **ticks, **cell)


def _panel_title(claim: str, contrast: str, metric: str) -> str:
    spectral = metric != "accuracy" and metric.upper() not in contrast
    return as_text(f"{claim} · {contrast}" + (f", {metric.upper()}" if spectral else ""))


def _name(row: Any, several: bool) -> str:
    return f"{row.protocol} · {row.task}" + (f" · {row.objective}" if several else "")


def _marks(part: pd.DataFrame, verdict: str, mark: tuple[str, str], *, shown: bool) -> go.Scatter:
    color, symbol = mark
    texts = [f"{as_text(row.name)}: {verdict}<br>{wrap(row.why, 60)}" for row in part.itertuples(index=False)]
    trace = go.Scatter(
        x=part["mean"], y=part["place"], mode="markers", text=texts, hovertemplate="%{text}<extra></extra>"
    )
    trace.update(marker={"color": color, "symbol": symbol, "size": 10, "line": {"width": 2, "color": color}})
    return trace.update(name=verdict, legendgroup=verdict, showlegend=shown, error_x=error_bar(part, color))


def _nothing(verdicts: pd.DataFrame, title: str) -> go.Figure:
    reasons = verdicts.drop_duplicates(["claim", "why"])
    lines = [wrap(f"{row.claim}: {row.why}", 90) for row in reasons.head(6).itertuples(index=False)]
    figure = go.Figure().update_xaxes(visible=False).update_yaxes(visible=False)
    figure.add_annotation(text="<br>".join(lines), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    return finish(figure, title, height=160)
