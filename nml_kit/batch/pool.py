"""Runs as tasks of a Dask cluster: sent, watched, interrupted, and tried again where a worker was lost."""

import math
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from dask.utils import parse_bytes
from distributed import Client, Future, KilledWorker, get_worker

from nml_kit import __version__
from nml_kit.batch.run import execute_run
from nml_kit.batch.status import PLAN, RunStatus
from nml_kit.batch.suites import Resources
from nml_kit.errors import InvalidInputError, NMLError

_GRACE = 10  # seconds that an interrupted kernel has to end
_STOPPED: defaultdict[str, threading.Event] = defaultdict(threading.Event)  # in a worker: batches, interrupted or not


class Board(Protocol):
    """Who is told what happens."""

    def started(self, run: RunStatus) -> None: ...
    def ended(self, run: RunStatus, status: RunStatus) -> None: ...
    def say(self, text: str) -> None: ...


class Order(NamedTuple):
    """How runs are to be executed; `progress` shows on stderr what notebooks write there."""

    force: bool
    timeout: float | None
    progress: bool


class Pool:
    """What runs report and how they end comes as events in one queue, read by one thread.

    `retries` is how often a run whose worker was lost is tried again; None: as the scheduler says.
    """

    def __init__(self, client: Client, retries: int | None, order: Order, board: Board) -> None:
        def agree(dask_scheduler: Any) -> int:  # nested, it travels whole: the scheduler need not have nml_kit for it
            if retries is not None:
                dask_scheduler.allowed_failures = retries
            return int(dask_scheduler.allowed_failures)

        self.interrupts = 0
        self._client, self._order, self._board = client, order, board
        self._retries: int = client.run_on_scheduler(agree)
        self._batch = f"nml-{uuid.uuid4().hex}"
        self._tasks: dict[str, tuple[RunStatus, Future]] = {}  # by run directory
        self._starts: Counter[str] = Counter()
        self._unmet: list[dict[str, float]] = []
        self._events: SimpleQueue[tuple[str, str | Future]] = SimpleQueue()
        client.subscribe_topic(self._batch, lambda event: self._events.put(event[1]))

    def execute(self, runs: Sequence[RunStatus]) -> dict[str, RunStatus]:
        """The statuses of runs, by name; after Ctrl-C, of those that had started.

        At Ctrl-C the kernels are interrupted; one that has not ended after some seconds, or at a second Ctrl-C, is
        killed.
        """
        waiting, ended, told, patience = deque(runs), dict[str, RunStatus](), 0, math.inf
        if runs:
            self._check_workers(runs[0].plan_dir / PLAN)
        while waiting or self._tasks:
            try:
                if self.interrupts > told:
                    told, patience = self.interrupts, min(patience, time.monotonic() + _GRACE)
                    waiting.clear()
                    self._interrupt(kill=told > 1)
                elif waiting:
                    self._send(waiting.popleft())
                else:
                    ended |= self._hear(*self._events.get(timeout=1 if told else None))
            except KeyboardInterrupt:
                self.interrupts += 1
            except Empty:
                self.interrupts += time.monotonic() > patience
        return ended

    def _check_workers(self, plan: Path) -> None:
        answers = self._client.run(_problem, __version__, plan, on_error="return")
        if problems := [f"{worker}: {answer}" for worker, answer in answers.items() if answer]:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise InvalidInputError(f"Expected workers like this process, got: {' '.join(problems[:3])}{more}")

    def _send(self, run: RunStatus) -> None:
        resources, name = demanded(run.resources), str(run.run_dir)
        self._tell_unmet(resources)
        task = self._client.submit(
            _execute,
            run,
            self._batch,
            self._order,
            __version__,
            key=f"{run.name}-{uuid.uuid4().hex}",
            resources=resources or None,
            pure=False,
        )
        self._tasks[name] = run, task
        task.add_done_callback(lambda task: self._events.put((name, task)))

    def _tell_unmet(self, demands: dict[str, float]) -> None:
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        met = any(all(worker["resources"].get(key, 0) >= value for key, value in demands.items()) for worker in workers)
        if not met and demands not in self._unmet:
            self._unmet.append(demands)
            wanted = " ".join(f"{key}={value:g}" for key, value in demands.items())
            self._board.say(f"waiting for a worker{wanted and f' with --resources {wanted!r}'}")

    def _hear(self, name: str, news: str | Future) -> dict[str, RunStatus]:
        """Take one event: what a run says ("" when it starts), or its task, which has ended."""
        if name not in self._tasks:
            return {}
        run, _ = self._tasks[name]
        if isinstance(news, Future):
            del self._tasks[name]  # and with it Dask's own memory of the task: it is never computed again
            if self._merely_waited(name, news):
                self._send(run)
            elif status := self._status(run, news):
                self._board.ended(run, status)
                return {run.name: status}
        elif news:
            self._board.say(news)
        else:
            self._starts[name] += 1
            self._board.started(run)
        return {}

    def _merely_waited(self, name: str, task: Future) -> bool:
        """Whether Dask gave up a run for workers that were lost while it waited there for another one to end."""
        killed = not task.cancelled() and isinstance(task.exception(), KilledWorker)
        return killed and self._starts[name] <= self._retries and not self.interrupts

    def _status(self, run: RunStatus, task: Future) -> RunStatus | None:
        if task.cancelled():
            reason = "the scheduler is gone or gave it up"
            return None if self.interrupts else run.ended("failed", reason)
        error = task.exception()
        if error is None:
            status: RunStatus | None = task.result()
            return status
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, KilledWorker):
            reason = f"every worker that tried it was lost, the last {error.last_worker.address}"
            reason += "; out of memory? --retries allows more"
        return run.ended("failed", reason)

    def _interrupt(self, *, kill: bool) -> None:
        """End what waits; interrupt the kernels of what runs."""
        for name, (_, task) in self._tasks.items():
            if not self._starts[name]:
                task.cancel()
        running = [run.run_dir for run, _ in self._tasks.values()]
        with suppress(OSError):  # the scheduler is gone, and its workers with it
            self._client.run(_interrupt_kernels, self._batch, running, kill, on_error="ignore")


def demanded(resources: dict[str, Any]) -> dict[str, float]:
    """What a run asks of Dask: the resources that its suite states and that are not the defaults; memory in bytes.

    >>> demanded({"CPU": 1, "GPU": 2, "memory": "8 GB"})
    {'GPU': 2.0, 'memory': 8000000000.0}
    """
    default = Resources().model_dump()
    stated = {key: value for key, value in resources.items() if value != default[key] and value}
    return {key: float(parse_bytes(value) if key == "memory" else value) for key, value in stated.items()}


def _execute(run: RunStatus, batch: str, order: Order, version: str) -> RunStatus | None:
    """In a thread of a worker: the run, its reports as events. Bad input and a full disk are a failed run, too."""
    stop, worker = _STOPPED[batch], get_worker()
    if stop.is_set():
        return None

    def tell(text: str) -> None:
        worker.log_event(batch, (str(run.run_dir), text))

    tell("")
    if problem := _problem(version, run.plan_dir / PLAN):  # it may have joined after the others were asked
        return run.ended("failed", f"{worker.address}: {problem}")
    options: dict[str, Any] = {"force": order.force, "timeout": order.timeout, "stop": stop, "report": tell}
    try:  # in a context of its own: jupyter_core keeps its event loop there, which two threads must not share
        return Context().run(execute_run, run, progress=sys.stderr if order.progress else None, **options)
    except (NMLError, OSError) as error:
        return run.ended("failed", f"{type(error).__name__}: {error}")


def _problem(version: str, plan: Path) -> str:
    """In a worker: what keeps it from executing runs, "" if nothing."""
    if version != __version__:
        return f"it has nml_kit {__version__}, not {version}: install the same there."
    if not plan.exists():
        return f"it does not see {plan.parent}: choose --runs on a file system that all workers share."
    return ""


def _interrupt_kernels(batch: str, run_dirs: Collection[Path], kill: bool) -> None:
    """In a worker: start no run of the batch any more and interrupt, or kill, the kernels of those that run."""
    from nml_kit.batch.execution import interrupt_kernels

    _STOPPED[batch].set()
    interrupt_kernels(run_dirs, kill=kill)
