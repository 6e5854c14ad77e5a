"""Runs as tasks of Dask, in threads of this process or on a scheduler's workers: sent, watched, interrupted."""

import logging
import math
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed import Client, Future, KilledWorker, get_worker

from nml_kit import __version__
from nml_kit.batch.execution import STOPPED, execute_run, interrupt_kernels
from nml_kit.batch.status import PLAN, RunStatus
from nml_kit.batch.suites import Resources
from nml_kit.errors import InvalidInputError, NMLError

_CONNECT_SECONDS = 5
_GRACE = 10  # seconds that an interrupted kernel has to end


@contextmanager
def connected(where: int | str) -> Iterator[Client]:
    """Give a client of so many threads of this process, or of the scheduler at an address.

    One path for both: here, Dask costs 1.0 s of CPU time to import and 0.2 s to start, where papermill takes 4.0 s.
    Raises InvalidInputError if no scheduler answers.
    """
    cluster: dict[str, Any] = {"address": where}
    if isinstance(where, int):
        cluster = {"processes": False, "n_workers": 1, "threads_per_worker": where, "memory_limit": None}
        cluster |= {"dashboard_address": None, "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"}}
        cluster |= {"silence_logs": logging.CRITICAL, "resources": dict.fromkeys(Resources.model_fields, math.inf)}
    no_pages: dict[str, Any] = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")}
    try:
        with dask.config.set(no_pages):
            client = Client(timeout=_CONNECT_SECONDS, set_as_default=False, **cluster)
    except (OSError, ValueError) as error:
        message = f"Expected a Dask scheduler at {where}, got: {error}. `dask scheduler` starts one and prints it."
        raise InvalidInputError(message) from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its errors are our results
    with client:
        yield client


class Pool:
    """What runs report and how they end comes as events in one queue, read by one thread.

    `report` gets a line for each of `total` runs that starts or ends; `options` are those of `execute_run`.
    """

    def __init__(self, client: Client, report: Callable[[str], None], total: int, **options: Any) -> None:
        self.interrupts = 0
        self._client, self._report, self._total, self._options = client, report, total, options
        self._batch = f"nml-{uuid.uuid4().hex}"
        self._tasks: dict[str, tuple[RunStatus, Future]] = {}  # by run directory
        self._starts: Counter[str] = Counter()
        self._ended = 0
        self._unmet: list[dict[str, float]] = []
        self._events: SimpleQueue[tuple[str, str | Future]] = SimpleQueue()
        client.subscribe_topic(self._batch, lambda event: self._events.put(event[1]))

    def execute(self, runs: Sequence[RunStatus]) -> dict[str, RunStatus]:
        """The statuses of runs, by name; after Ctrl-C, of those that had started.

        At Ctrl-C the kernels are interrupted; one that has not ended after some seconds, or at a second Ctrl-C, is
        killed. Raises InvalidInputError, before anything starts, if a worker is unlike this process.
        """
        answers = self._client.run(_problem, __version__, runs[0].plan_dir / PLAN, on_error="return")
        if problems := [f"{worker}: {answer}" for worker, answer in answers.items() if answer]:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise InvalidInputError(f"Expected workers like this process, got: {' '.join(problems[:3])}{more}")
        waiting, ended, told, patience = deque(runs), dict[str, RunStatus](), 0, math.inf
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

    def _send(self, run: RunStatus) -> None:
        demands, name = demanded(run.resources), str(run.run_dir)
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        met = any(all(worker["resources"].get(key, 0) >= value for key, value in demands.items()) for worker in workers)
        if not met and demands not in self._unmet:
            self._unmet.append(demands)
            wanted = " ".join(f"{key}={value:g}" for key, value in demands.items())
            self._report(f"waiting for a worker{wanted and f' with --resources {wanted!r}'}")
        places = {"resources": demands or None, "pure": False}
        task = self._client.submit(_execute, run, self._batch, self._options, __version__, **places)
        self._tasks[name] = run, task
        task.add_done_callback(lambda task: self._events.put((name, task)))

    def _hear(self, name: str, news: str | Future) -> dict[str, RunStatus]:
        """Take one event: what a run says ("" when it starts), or its task, which has ended."""
        if name not in self._tasks:
            return {}
        run, _ = self._tasks[name]
        if not isinstance(news, Future):
            self._starts[name] += 0 if news else 1
            again = " again: who ran it is gone" if self._starts[name] > 1 else ""
            self._report(news or f"{run.name} started{again}")
            return {}
        del self._tasks[name]  # and with it Dask's own memory of the task: it is never computed again
        status = self._result(run, news)
        if status is None:
            return {}
        self._ended += 1
        after = f" after {status.seconds:.1f} s" if status.seconds is not None else ""
        error = status.error and f": {status.error}"
        self._report(f"{run.name} {status.state}{after} ({self._ended} of {self._total}){error}")
        return {run.name: status}

    def _result(self, run: RunStatus, task: Future) -> RunStatus | None:
        """What became of a run by its task; None if Ctrl-C came before it began, or if it is sent once more."""
        if task.cancelled():
            return None if self.interrupts else run.ended("failed", "the scheduler is gone or gave it up")
        error = task.exception()
        if error is None:
            status: RunStatus | None = task.result()
            return status
        if not isinstance(error, KilledWorker):
            return run.ended("failed", f"{type(error).__name__}: {error}")
        if self._starts[str(run.run_dir)] <= error.allowed_failures and not self.interrupts:
            self._send(run)  # Dask gave it up for workers that were lost while it waited there for another run to end
            return None
        lost = f"every worker that tried it was lost, the last {error.last_worker.address}; out of memory?"
        return run.ended("failed", lost)

    def _interrupt(self, *, kill: bool) -> None:
        """End what waits; interrupt the kernels of what runs."""
        for name, (_, task) in self._tasks.items():
            if not self._starts[name]:
                task.cancel()
        running = [run.run_dir for run, _ in self._tasks.values()]
        with suppress(OSError):  # the scheduler is gone, and its workers with it
            self._client.run(interrupt_kernels, self._batch, running, kill=kill, on_error="ignore")


def demanded(resources: dict[str, Any]) -> dict[str, float]:
    """What a run asks of Dask: the resources that its suite states and that are not the defaults; memory in bytes.

    >>> demanded({"CPU": 1, "GPU": 2, "memory": "8 GB"})
    {'GPU': 2.0, 'memory': 8000000000.0}
    """
    default = Resources().model_dump()
    stated = {key: value for key, value in resources.items() if value != default[key] and value}
    return {key: float(parse_bytes(value) if key == "memory" else value) for key, value in stated.items()}


def _execute(run: RunStatus, batch: str, options: dict[str, Any], version: str) -> RunStatus | None:
    """In a thread of a worker: the run, its reports as events. Bad input and a full disk are a failed run, too."""
    stop, worker = STOPPED[batch], get_worker()
    if stop.is_set():
        return None

    def tell(text: str) -> None:
        worker.log_event(batch, (str(run.run_dir), text))

    tell("")
    if problem := _problem(version, run.plan_dir / PLAN):  # it may have joined after the others were asked
        return run.ended("failed", f"{worker.address}: {problem}")
    try:
        return execute_run(run, stop=stop, report=tell, **options)
    except (NMLError, OSError) as error:
        return run.ended("failed", f"{type(error).__name__}: {error}")


def _problem(version: str, plan: Path) -> str:
    """In a worker: what keeps it from executing runs, "" if nothing."""
    if version != __version__:
        return f"it has nml_kit {__version__}, not {version}: install the same there."
    if not plan.exists():
        return f"it does not see {plan.parent}: choose --runs on a file system that all workers share."
    return ""
