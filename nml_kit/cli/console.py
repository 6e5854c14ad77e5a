"""What the command `nml` shows: tables, and the progress of a batch. All texts are text, never rich's markup."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from nml_kit.batch import PlanRow, Progress, RunStatus, read_statuses, seconds_to_go

_COLOURS = {"done": "green", "running": "cyan", "waiting": "dim", "interrupted": "yellow"}
_LOOKS_WITHOUT_RUNS = 3  # in a row: between two stages nothing runs for a moment


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    _console().print(_table(title, columns, rows))


def show_plan(rows: Sequence[PlanRow], jobs: int) -> None:
    """Print what would be done, and how long it may take."""
    cells = [(row.run.name, row.action, "?" if row.seconds is None else f"{row.seconds:.0f}") for row in rows]
    show("What nml run would do", ["run", "state", "seconds"], cells)
    todo = [row for row in rows if row.action != "hit"]
    total = seconds_to_go([(row.run.stage, row.seconds) for row in todo], jobs)
    unknown = sum(row.seconds is None for row in todo)
    note = f"; {unknown} never timed, taken as the mean of the others" if unknown and total is not None else ""
    typer.echo(f"{len(todo)} to run, {_about(total)} with --jobs {jobs}{note}")


def show_statuses(runs: Path) -> None:
    """Print the runs with what became of them."""
    _console().print(_status_table(read_statuses(runs)))


def watch_statuses(runs: Path) -> None:
    """Show the runs, live, until none has run for some seconds, or Ctrl-C."""
    quiet = 0
    with Live(_status_table(read_statuses(runs)), console=_console(), auto_refresh=False) as live:
        while quiet < _LOOKS_WITHOUT_RUNS:
            try:
                time.sleep(1)
            except KeyboardInterrupt:
                return
            statuses = read_statuses(runs)
            live.update(_status_table(statuses), refresh=True)
            quiet = 0 if any(status.state == "running" for status in statuses) else quiet + 1


@contextmanager
def live_progress() -> Iterator[Callable[[Progress], None]]:
    """Give a reporter of a batch: on a terminal a bar, else a line whenever a run starts or ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda progress: typer.echo(f"nml: {progress.text}", err=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Bar(SpinnerColumn(), *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def report(progress: Progress) -> None:
            bar.console.print(Text(f"nml: {progress.text}"), soft_wrap=True)
            bar.update(
                task,
                completed=progress.ended,
                total=progress.total,
                description=", ".join(progress.running),
                visible=progress.total > 1,
            )

        yield report


def _about(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"


def _status_table(statuses: Sequence[RunStatus]) -> Table:
    now, rows = datetime.now(UTC), []
    for status in statuses:
        seconds, state = status.seconds_at(now), Text(status.state, _COLOURS.get(status.state, "red"))
        told = "" if seconds is None else f"{seconds:.1f}"
        rows.append((status.name, state, told, status.finished, status.short_error))
    return _table("", ["run", "state", "seconds", "finished (UTC)", "error"], rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(*columns, title=Text(title) if title else None, title_justify="left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 140)
