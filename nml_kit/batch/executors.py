"""Where the runs of a batch are executed: in threads here, each with a kernel of its own; _cluster is another place."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol, TextIO

from nml_kit.batch.run import execute_run
from nml_kit.batch.status import RunStatus
from nml_kit.batch.suites import PlannedRun
from nml_kit.errors import NMLError


class Board(Protocol):
    """Who is told what happens, from any thread."""

    def started(self, run: PlannedRun) -> None: ...
    def ended(self, run: PlannedRun, status: RunStatus) -> None: ...
    def say(self, text: str) -> None: ...


class Executor(Protocol):
    """Executes `slots` runs at a time; once `stop` is set, none that has not started: its result is None.

    The board is told of the end of a run before the future ends.
    """

    slots: int
    stop: threading.Event

    def submit(
        self, run: PlannedRun, board: Board, *, force: bool, timeout: float | None
    ) -> Future[RunStatus | None]: ...
    def interrupt(self, *, kill: bool = False) -> None: ...


OpenExecutor = Callable[
    [Callable[[str], None]], AbstractContextManager[Executor]
]  # takes who is told what it waits for


@contextmanager
def threads(jobs: int, progress: TextIO | None, say: Callable[[str], None]) -> Iterator[Executor]:
    """Execute runs in `jobs` threads; what notebooks write to stderr goes to `progress` too."""
    with ThreadPoolExecutor(jobs) as pool:
        executor = _Threads(pool, jobs, progress)
        try:
            yield executor
        finally:
            executor.stop.set()


class _Threads:
    def __init__(self, pool: ThreadPoolExecutor, jobs: int, progress: TextIO | None) -> None:
        self._pool, self.slots, self._progress = pool, jobs, progress
        self.stop = threading.Event()

    def submit(self, run: PlannedRun, board: Board, *, force: bool, timeout: float | None) -> Future[RunStatus | None]:
        return self._pool.submit(self._execute, run, board, force, timeout)

    def _execute(self, run: PlannedRun, board: Board, force: bool, timeout: float | None) -> RunStatus | None:
        if self.stop.is_set():
            return None
        board.started(run)
        options = {"force": force, "timeout": timeout, "progress": self._progress}
        status = attempt_run(run, stop=self.stop, report=board.say, **options)
        board.ended(run, status)
        return status

    def interrupt(self, *, kill: bool = False) -> None:
        from nml_kit.batch.kernels import interrupt_kernels

        interrupt_kernels(kill=kill)


def attempt_run(run: PlannedRun, **options: Any) -> RunStatus:
    """Like `execute_run`, but bad input and a full disk are a failed run, too."""
    try:
        return execute_run(run, **options)
    except (NMLError, OSError) as error:
        return without_result(run, "failed", f"{type(error).__name__}: {error}")


def without_result(run: PlannedRun, state: Literal["failed", "skipped"], reason: str) -> RunStatus:
    """The status of a run of which nothing is on disk."""
    return RunStatus(name=run.name, notebook=run.notebook, run_dir=run.run_dir, state=state, error=reason)
