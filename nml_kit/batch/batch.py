"""Notebooks run as a batch: checked before a kernel starts, stage by stage, side by side; what is done stays done."""

import fnmatch
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from nml_kit.batch.estimates import known_seconds, seconds_to_go
from nml_kit.batch.executors import Board, Executor, OpenExecutor, threads, without_result
from nml_kit.batch.run import execute_run, planned_status, prepare
from nml_kit.batch.status import (
    DONE,
    INTERRUPTED,
    PART_FAILED,
    RunStatus,
    current_status,
    is_done,
    write_plan,
)
from nml_kit.batch.suites import PlannedRun
from nml_kit.errors import InvalidInputError

Action = Literal["hit", "run", "retry", "running"]
_GRACE = 10  # seconds that an interrupted kernel has to end
_log = logging.getLogger(__name__)


class PlanRow(NamedTuple):
    """A run of a plan, what would be done with it, and how many seconds such a run took before (None: not known)."""

    run: PlannedRun
    status: RunStatus
    action: Action
    seconds: float | None


class Progress(NamedTuple):
    """Where a batch is: what just happened, the names of what runs, ended and all runs, estimated seconds left."""

    text: str
    running: tuple[str, ...]
    ended: int
    total: int
    seconds_left: float | None


def look_ahead(plan: Sequence[PlannedRun], *, only: str | None = None, force: bool = False) -> list[PlanRow]:
    """Check all runs of a plan and tell, for those whose name matches `only`, what `run_suite` would do.

    Starts and writes nothing. Raises InvalidInputError or DataFileError for bad input.
    """
    return _rows(_planned(plan), only, force)


def _planned(plan: Sequence[PlannedRun]) -> list[tuple[PlannedRun, RunStatus]]:
    """Each run, its directory absolute, with its status before anything happened; all are checked."""
    plan = [replace(run, run_dir=run.run_dir.resolve()) for run in plan]
    if len({run.run_dir for run in plan}) < len(plan):
        raise InvalidInputError("Expected a directory for each run, got two runs in one: name them differently.")
    return [(run, planned_status(run, prepared)) for run, prepared in zip(plan, prepare(plan), strict=True)]


def _rows(planned: list[tuple[PlannedRun, RunStatus]], only: str | None, force: bool) -> list[PlanRow]:
    pattern = only or "*"
    fits = (pattern, f"{pattern}/*")  # a notebook's name stands for all points of its grid
    chosen = [pair for pair in planned if any(fnmatch.fnmatchcase(pair[0].name, one) for one in fits)]
    if planned and not chosen:
        names = ", ".join(run.name for run, _ in planned)
        raise InvalidInputError(f"Expected a pattern that fits a run, got {only!r}. Runs: {names}.")
    actions = [_action(status, force) for _, status in chosen]
    known = known_seconds(chosen[0][0].plan_dir.parent) if set(actions) - {"hit"} else {}
    return [
        PlanRow(run, status, action, 0.0 if action == "hit" else known.get((status.notebook, status.profile)))
        for (run, status), action in zip(chosen, actions, strict=True)
    ]


def _action(waiting: RunStatus, force: bool) -> Action:
    now = current_status(waiting.run_dir)
    if now is not None and now.state == "running":
        return "running"
    if not force and is_done(now, waiting.id):
        return "hit"
    failed = now is not None and now.id == waiting.id and now.state in ("failed", "timed out", "kernel died")
    return "retry" if failed else "run"


def run_suite(
    plan: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    only: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    timeout: float | None = None,
    report: Callable[[Progress], None] = lambda progress: _log.info(progress.text),
    progress: TextIO | None = None,
    elsewhere: OpenExecutor | None = None,
) -> list[RunStatus]:
    """Run a plan stage by stage, `jobs` at a time, for at most `timeout` seconds each; what is done is a "hit".

    All parameters and profiles are checked before the first kernel starts. A failed run does not stop the others of
    its stage; those of later stages are "skipped" unless `keep_going`. `report` is called when something happens;
    what a run that is alone in the plan writes to stderr (progress bars) goes to `progress`. The plan is noted in
    plan.json. `elsewhere` opens another place to run than threads here.
    Raises InvalidInputError or DataFileError for bad input, before anything starts.
    """
    if jobs < 1:
        raise InvalidInputError(f"Expected jobs of at least 1, got {jobs}.")
    if timeout is not None and not timeout > 0:
        raise InvalidInputError(f"Expected a timeout above 0 seconds, got {timeout}.")
    planned = _planned(plan)
    rows = _rows(planned, only, force)
    if todo := [row for row in rows if row.action != "hit"]:
        from nml_kit.pages import read_notebook  # with nbformat, which takes over a second to load

        for notebook in {row.run.notebook for row in todo}:
            read_notebook(notebook)
    _note_plan(planned)
    board = _Board(rows, report)
    results: list[RunStatus] = []
    if not todo:
        return _stage(rows, [], lambda runs: [])
    with (elsewhere or partial(threads, jobs, progress if len(rows) == 1 else None))(board.say) as executor:
        board.slots = executor.slots
        execute = partial(_side_by_side, executor=executor, board=board, force=force, timeout=timeout)
        for _, members in groupby(rows, lambda row: row.run.stage):
            failed = [status.name for status in results if status.exit_code]
            results += _stage(list(members), [] if keep_going else failed, execute)
            if executor.stop.is_set() or any(status.exit_code == INTERRUPTED for status in results):
                break
        if executor.stop.is_set() and suite_exit_code(results) != INTERRUPTED:
            raise KeyboardInterrupt  # before a run had started that could say so
    return results


def _stage(
    rows: list[PlanRow], failed: list[str], execute: Callable[[list[PlannedRun]], list[RunStatus]]
) -> list[RunStatus]:
    """The results of a stage: of hits at once, of the others side by side, none of these if an earlier one failed."""
    todo = [row.run for row in rows if row.action != "hit"]
    if failed:
        reason = f"not started: {', '.join(failed[:3])}{' and more' if len(failed) > 3 else ''} did not end well"
        ended = [without_result(run, "skipped", reason) for run in todo]
    else:
        ended = execute(todo)
    by_name = {status.name: status for status in ended}
    hits = {row.run.name: current_status(row.run.run_dir) or row.status for row in rows if row.action == "hit"}
    by_name |= {name: status.model_copy(update={"state": "hit", "name": name}) for name, status in hits.items()}
    return [by_name[row.run.name] for row in rows if row.run.name in by_name]


def _side_by_side(
    runs: list[PlannedRun], *, executor: Executor, board: Board, force: bool, timeout: float | None
) -> list[RunStatus]:
    """The results of runs that may overlap; after Ctrl-C, of those that had started."""
    futures: list[Future[RunStatus | None]] = []
    try:
        for run in runs:
            futures.append(executor.submit(run, board, force=force, timeout=timeout))  # noqa: PERF401 (kept at Ctrl-C)
        wait(futures)
    except KeyboardInterrupt:
        executor.stop.set()
        _interrupt(executor, futures)
    return [status for future in futures if (status := future.result()) is not None]


def _interrupt(executor: Executor, futures: Sequence[Future[Any]]) -> None:
    """Interrupt what runs; a kernel that has not ended after some seconds, or at a second Ctrl-C, is killed."""
    try:
        executor.interrupt()
        pending = wait(futures, timeout=_GRACE).not_done
    except KeyboardInterrupt:
        pending = {future for future in futures if not future.done()}
    while pending:
        executor.interrupt(kill=True)
        pending = wait(pending, timeout=1).not_done


def _note_plan(planned: list[tuple[PlannedRun, RunStatus]]) -> None:
    for plan_dir in {run.plan_dir for run, _ in planned}:
        write_plan(plan_dir, [status for run, status in planned if run.plan_dir == plan_dir])


class _Board:
    """What runs and what has ended, told to `report` at each change, one thread at a time."""

    def __init__(self, rows: list[PlanRow], report: Callable[[Progress], None]) -> None:
        self._lock, self.slots, self._report = threading.Lock(), 1, report
        self._total = len(rows)
        self._running: dict[str, float] = {}  # names, and since when
        self._left = {row.run.name: row for row in rows if row.action != "hit"}
        self._took: dict[Path, float] = {}  # seconds of the last run done here, by notebook

    def started(self, run: PlannedRun) -> None:
        with self._lock:
            again = " again: who ran it is gone" if run.name in self._running else ""
            self._running[run.name] = time.monotonic()
            self._tell(f"{run.name} started{again}")

    def ended(self, run: PlannedRun, status: RunStatus) -> None:
        with self._lock:
            self._running.pop(run.name, None)
            row = self._left.pop(run.name)
            if status.state == "done" and status.seconds is not None:
                self._took[run.notebook] = status.seconds
            after = f" after {status.seconds:.1f} s" if status.seconds is not None and status.state != "hit" else ""
            self._tell(f"{row.run.name} {status.state}{after}" + (status.error and f": {status.error}"))

    def say(self, text: str) -> None:
        with self._lock:
            self._tell(text)

    def _tell(self, text: str) -> None:
        left = seconds_to_go(
            [(row.run.stage, self._seconds_left(name, row)) for name, row in self._left.items()], self.slots
        )
        self._report(Progress(text, tuple(self._running), self._total - len(self._left), self._total, left))

    def _seconds_left(self, name: str, row: PlanRow) -> float | None:
        seconds, now = self._took.get(row.run.notebook, row.seconds), time.monotonic()
        return None if seconds is None else max(seconds - now + self._running.get(name, now), 0.0)


def suite_exit_code(results: Sequence[RunStatus]) -> int:
    """Return 0 if all runs are done, 130 if interrupted, a single run's own code, else 3."""
    codes = [result.exit_code for result in results]
    if INTERRUPTED in codes:
        return INTERRUPTED
    if len(codes) == 1:
        return codes[0]
    return PART_FAILED if any(codes) else DONE


def run_notebook(
    notebook: str | Path,
    *,
    profile: str | None = None,
    params: dict[str, Any] | None = None,
    run_dir: str | Path,
    timeout: float | None = None,
    progress: TextIO | None = None,
) -> RunStatus:
    """Execute a notebook into `run_dir`, whatever is there: notebook.ipynb, notebook.html, what it writes, status.json.

    The kernel is this very Python. A failing cell is a result, not an exception; raises InvalidInputError or
    DataFileError for bad input.
    """
    run = PlannedRun(Path(notebook).resolve(), profile, params or {}, Path(run_dir).resolve())
    return execute_run(run, force=True, timeout=timeout, progress=progress)
