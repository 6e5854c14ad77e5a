"""What the command `nml` shows: tables, and what runs are doing. All texts are text, never rich's markup."""

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_COLOURS = {"done": "green", "running": "cyan", "waiting": "dim", "interrupted": "yellow"}
_LOOKS_WITHOUT_RUNS = 3  # in a row: between two stages nothing runs for a moment


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    _console().print(_table(title, columns, rows))


def show_statuses(runs: Path, *, watch: bool) -> None:
    """Print the runs with what became of them; to `watch`, live, until none has run for some seconds, or Ctrl-C."""
    table, running = _status_table(runs)
    if not watch:
        _console().print(table)
        return
    quiet = 0
    with suppress(KeyboardInterrupt), Live(table, console=_console(), auto_refresh=False) as live:
        while quiet < _LOOKS_WITHOUT_RUNS:
            time.sleep(1)
            table, running = _status_table(runs)
            live.update(table, refresh=True)
            quiet = 0 if running else quiet + 1


def _status_table(runs: Path) -> tuple[Table, bool]:
    """The table of all runs, and whether one of them is running."""
    from nml_kit.batch import read_statuses

    statuses, now, rows = read_statuses(runs), datetime.now(UTC), []
    for status in statuses:
        seconds, finished = status.seconds_at(now), status.finished
        state = Text(status.state, _COLOURS.get(status.state, "red"))
        ended = f"{finished:%Y-%m-%d %H:%M:%S}" if finished else ""
        rows.append((status.name, state, "" if seconds is None else f"{seconds:.1f}", ended, status.short_error))
    table = _table("", ["run", "state", "seconds", "finished (UTC)", "error"], rows)
    return table, any(status.state == "running" for status in statuses)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(*columns, title=Text(title) if title else None, title_justify="left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 140)
