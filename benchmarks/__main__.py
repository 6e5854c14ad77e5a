"""`make bench`: measure every row, print the table, write benchmarks/results.md and results.json."""

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import data_path, heads, interaction, spectra, steps
from benchmarks.measure import REPEATS, Row, gemm_rate

GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "steps": steps.rows,
    "heads": heads.rows,
    "spectra": spectra.rows,
    "data": data_path.rows,
    "interaction": interaction.rows,
}
HEADINGS = {
    "steps": "One training step",
    "heads": "Whole fits and sweeps",
    "spectra": "Singular spectra",
    "data": "Data path",
    "interaction": "Interaction",
}


def seconds(value: float) -> str:
    """A time with three significant digits in the unit that reads best."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (300, 1, "s"), (18_000, 1 / 60, "min")):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def markdown(group: str, rows: list[Row], machine: dict[str, Any]) -> str:
    """The rows of a group as a Markdown table, under the machine that they were measured on, with their notes below."""
    lines = [
        f"## {HEADINGS[group]}",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        "| what | ours | against | its time | times faster | floor | share of floor | aim |",
    ]
    lines.append("|---|---:|---|---:|---:|---:|---:|---|")
    notes = []
    for row in rows:
        floor = "–" if row.floor is None else seconds(row.floor)
        share = "–" if row.floor_share is None else f"{row.floor_share:.0%}"
        aims = [f"≥ {row.target:.3g} ×"] if row.target else []
        aims += [f"≥ {row.target_floor:.0%} of floor"] if row.target_floor else []
        aim = f"{', '.join(aims)}: {'met' if row.met else '**missed**'}" if aims else "–"
        mark = f" ({len(notes) + 1})" if row.note else ""
        notes += [f"({len(notes) + 1}) {row.note}"] if row.note else []
        times = [seconds(row.ours), row.against, seconds(row.other), f"{row.ratio:.2f}"]
        lines.append(f"| {' | '.join([row.what + mark, *times, floor, share, aim])} |")
    return "\n".join([*lines, "", *notes, ""])


def main(
    only: Annotated[list[str] | None, typer.Argument(help=f"Some of: {', '.join(GROUPS)}.")] = None,
    out: Annotated[Path, typer.Option(help="Directory for results.md and results.json.")] = Path(__file__).parent,
) -> None:
    """Measure, print and write the benchmark page; parts that are not measured keep what was measured before."""
    console = Console(width=150, stderr=True)
    measured: dict[str, list[Row]] = {}
    for group in only or GROUPS:
        measured[group] = []
        for row in GROUPS[group]():
            measured[group].append(row)
            console.print(f"{row.what} | {row.ratio:.2f} × {row.against} | {seconds(row.ours)}")
    stored = out / "results.json"
    content = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {"rows": {}, "machines": {}}
    content["rows"] |= {group: [row.as_json() for row in rows] for group, rows in measured.items()}
    content["machines"] |= dict.fromkeys(measured, machine())
    stored.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = page(content)
    (out / "results.md").write_text(text, encoding="utf-8")
    print(text)


def machine() -> dict[str, object]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "float32 GFLOP/s": round(gemm_rate(torch.float32) / 1e9),
        "float64 GFLOP/s": round(gemm_rate(torch.float64) / 1e9),
        "torch": torch.__version__,
    }


def page(content: dict[str, Any]) -> str:
    """The Markdown page of all groups that have been measured."""
    intro = (
        f"# Speed\n\nWritten by `make bench`. Medians of at least {REPEATS} (unless a note says otherwise). All rows "
        "of a part come from one run, both sides in turn: quote the ratios. Floor: the products alone, in memory that "
        "is there already.\n"
    )
    names = {field.name for field in fields(Row)}
    parts = {
        group: [Row(**{name: value for name, value in row.items() if name in names}) for row in content["rows"][group]]
        for group in GROUPS
        if group in content["rows"]
    }
    return "\n".join([intro, *(markdown(group, rows, content["machines"][group]) for group, rows in parts.items())])


if __name__ == "__main__":
    typer.run(main)
