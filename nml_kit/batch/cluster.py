"""Runs of a batch on a Dask cluster: each is a task of its own, executed by a worker as a thread here would."""

import logging
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dask.utils import parse_bytes
from distributed import Client, KilledWorker, get_worker

from nml_kit import __version__
from nml_kit.batch.executors import Board, Executor, OpenExecutor, attempt_run, without_result
from nml_kit.batch.status import RunStatus
from nml_kit.batch.suites import PlannedRun, Resources
from nml_kit.errors import InvalidInputError
from nml_kit.store import temporary_beside

_CONNECT_SECONDS = 5
_STOPPED: defaultdict[str, threading.Event] = defaultdict(threading.Event)  # in a worker: batches, interrupted or not


class _Order(NamedTuple):
    """What a worker is told besides the run: the batch, its version of nml_kit, and a file that it must see."""

    batch: str
    version: str
    probe: Path
    force: bool
    timeout: float | None


def on_scheduler(address: str, *, retries: int | None = None) -> OpenExecutor:
    """Execute runs on the workers of a running Dask scheduler, which retries a run whose worker is lost.

    `retries` replaces the scheduler's own number (`distributed.scheduler.allowed-failures`). Opening it raises
    InvalidInputError if no scheduler answers.
    """
    return partial(connected, address, retries)


@contextmanager
def connected(target: Any, retries: int | None, say: Callable[[str], None]) -> Iterator[Executor]:
    """Give an executor on a scheduler's address or a cluster object; whatever is left is given up at the end."""
    try:
        client = Client(target, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"Expected a Dask scheduler at {target}, got: {error}. `dask scheduler` starts one and prints its address."
        ) from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its errors are our results

    def agree(dask_scheduler: Any) -> int:  # nested, it travels whole: the scheduler need not have nml_kit for it
        if retries is not None:
            dask_scheduler.allowed_failures = retries
        return int(dask_scheduler.allowed_failures)

    with client:
        executor = _Cluster(client, client.run_on_scheduler(agree), say)
        try:
            yield executor
        finally:
            executor.close()


class _Cluster:
    """Runs as tasks: what they report comes as events, their status as the task's result."""

    def __init__(self, client: Client, retries: int, say: Callable[[str], None]) -> None:
        self.stop, self._client, self._retries, self._say = threading.Event(), client, retries, say
        self.slots = max(1, sum(client.nthreads().values()))
        self._batch = f"nml-{uuid.uuid4().hex}"
        self._pool = client.get_executor(pure=False)
        self._open: dict[str, tuple[PlannedRun, Board, Future[Any]]] = {}  # by run directory
        self._starts: Counter[str] = Counter()
        self._probes: dict[Path, Path] = {}
        self._unmet: list[dict[str, float]] = []
        client.subscribe_topic(self._batch, self._hear)

    def submit(self, run: PlannedRun, board: Board, *, force: bool, timeout: float | None) -> Future[RunStatus | None]:
        order = _Order(self._batch, __version__, self._probe(run.plan_dir), force, timeout)
        self._tell_unmet(demanded(run.resources))
        result: Future[RunStatus | None] = Future()
        self._send(run, board, order, result)
        return result

    def _send(self, run: PlannedRun, board: Board, order: _Order, result: Future[RunStatus | None]) -> None:
        key = f"{run.name}-{uuid.uuid4().hex}"
        task = self._pool.submit(_execute, run, order, key=key, resources=demanded(run.resources) or None)
        self._open[str(run.run_dir)] = run, board, task
        task.add_done_callback(partial(self._end, run, board, order, result))

    def interrupt(self, *, kill: bool = False) -> None:
        """End what waits; interrupt the kernels of what runs."""
        running = [run.run_dir for name, (run, _, _) in list(self._open.items()) if self._starts[name]]
        for name, (_, _, task) in list(self._open.items()):
            if not self._starts[name]:
                task.cancel()
        with suppress(OSError):  # the scheduler is gone, and its workers with it
            self._client.run(_interrupt, self._batch, running, kill, on_error="ignore")

    def close(self) -> None:
        for _, _, task in list(self._open.values()):
            task.cancel()
        for probe in self._probes.values():
            probe.unlink(missing_ok=True)
        with suppress(ValueError, OSError):
            self._client.unsubscribe_topic(self._batch)

    def _hear(self, event: tuple[float, dict[str, str]]) -> None:
        message = event[1]
        if message["run"] not in self._open:
            return
        run, board, _ = self._open[message["run"]]
        if message["text"]:
            board.say(message["text"])
        else:
            self._starts[message["run"]] += 1
            board.started(run)

    def _end(
        self, run: PlannedRun, board: Board, order: _Order, result: Future[RunStatus | None], task: Future[Any]
    ) -> None:
        # Dask forgets the task with its future: it is not run again if the worker that has its result is lost.
        del self._open[str(run.run_dir)]
        status = None
        try:
            if self._merely_waited(run, task):
                self._send(run, board, order, result)
                return
            status = self._status(run, task)
            if status is not None:
                board.ended(run, status)
        except BaseException as error:
            result.set_exception(error)
            raise
        result.set_result(status)

    def _merely_waited(self, run: PlannedRun, task: Future[Any]) -> bool:
        """Whether Dask gave up a run for workers that were lost while it waited there for another one to end."""
        killed = not task.cancelled() and isinstance(task.exception(), KilledWorker)
        return killed and self._starts[str(run.run_dir)] <= self._retries and not self.stop.is_set()

    def _status(self, run: PlannedRun, task: Future[Any]) -> RunStatus | None:
        if task.cancelled():
            return None if self.stop.is_set() else without_result(run, "failed", "the scheduler is gone or gave it up")
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, KilledWorker):
            reason = f"every worker that tried it was lost, the last {error.last_worker.address}"
            return without_result(run, "failed", f"{reason}; out of memory? --retries allows more")
        return without_result(run, "failed", f"{type(error).__name__}: {error}")

    def _probe(self, plan_dir: Path) -> Path:
        """A file in the plan's directory that all workers must see, looked for when it is new."""
        if plan_dir not in self._probes:
            probe = self._probes[plan_dir] = temporary_beside(plan_dir / "probe")
            probe.touch()
            answers = self._client.run(_problem, __version__, probe, on_error="return")
            if problems := [f"{worker}: {answer}" for worker, answer in answers.items() if answer]:
                more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
                raise InvalidInputError(f"Expected workers like this process, got: {' '.join(problems[:3])}{more}")
        return self._probes[plan_dir]

    def _tell_unmet(self, demands: dict[str, float]) -> None:
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        met = any(all(worker["resources"].get(key, 0) >= value for key, value in demands.items()) for worker in workers)
        if not met and demands not in self._unmet:
            self._unmet.append(demands)
            wanted = " ".join(f"{key}={value:g}" for key, value in demands.items())
            self._say(f"waiting for a worker{wanted and f' with --resources {wanted!r}'}")


def demanded(resources: dict[str, Any]) -> dict[str, float]:
    """What a run asks of Dask: the resources that its suite states and that are not the defaults; memory in bytes.

    >>> demanded({"CPU": 1, "GPU": 2, "memory": "8 GB"})
    {'GPU': 2.0, 'memory': 8000000000.0}
    """
    default = Resources().model_dump()
    stated = {key: value for key, value in resources.items() if value != default[key] and value}
    return {key: float(parse_bytes(value) if key == "memory" else value) for key, value in stated.items()}


def _execute(run: PlannedRun, order: _Order) -> RunStatus | None:
    """In a thread of a worker: the run, its reports as events."""
    stop = _STOPPED[order.batch]
    if stop.is_set():
        return None
    worker = get_worker()

    def tell(text: str) -> None:
        worker.log_event(order.batch, {"run": str(run.run_dir), "text": text})

    tell("")
    if problem := _problem(order.version, order.probe):  # it may have joined after the others were asked
        return without_result(run, "failed", f"{worker.address}: {problem}")
    return attempt_run(run, force=order.force, timeout=order.timeout, stop=stop, report=tell)


def _problem(version: str, probe: Path) -> str:
    """In a worker: what keeps it from executing runs, "" if nothing."""
    if version != __version__:
        return f"it has nml_kit {__version__}, not {version}: install the same there."
    if not probe.exists():
        return f"it does not see {probe.parent}: choose --runs on a file system that all workers share."
    return ""


def _interrupt(batch: str, run_dirs: Collection[Path], kill: bool) -> None:
    """In a worker: start no run of the batch any more and interrupt, or kill, the kernels of those that run."""
    from nml_kit.batch.kernels import interrupt_kernels

    _STOPPED[batch].set()
    interrupt_kernels(run_dirs, kill=kill)
