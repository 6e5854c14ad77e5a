"""One run: its notebook in a kernel of this very Python through papermill, its page, and its status, written last."""

import json
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import filelock
import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from nml_kit.batch.kernel import TEXT_LIMIT, last_state
from nml_kit.batch.status import PLAN, STATUS, RunStatus, State, current_status, run_lock, write_status
from nml_kit.batch.suites import checked
from nml_kit.data import data_dir, datasets_dir
from nml_kit.errors import DataFileError, InvalidInputError, NMLError
from nml_kit.pages import export_html, read_notebook
from nml_kit.store import Store, explained, read_json, replacing

NOTEBOOK, PAGE, UNFINISHED, KERNEL_LOG = "notebook.ipynb", "notebook.html", "unfinished.ipynb", "kernel.log"
_ERROR_LIMIT = 2_000  # characters
_DRAIN = 60  # seconds to read what a cell left to read when it ended
_KERNEL_STARTS = 3
_NO_START = re.compile(r"before replying to kernel_info|didn't respond in \d+ seconds|Address already in use")
_INSERTED = {"injected-parameters", "papermill-error-cell-tag"}  # tags of papermill's own cells
_START = f"__import__('runpy').run_path({str(Path(__file__).with_name('kernel.py'))!r})['start'](get_ipython())"
STOPPED: defaultdict[str, threading.Event] = defaultdict(threading.Event)  # batches in this process
_log = logging.getLogger(__name__)


def execute_run(
    run: RunStatus,
    *,
    force: bool = False,
    timeout: float | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
    report: Callable[[str], None] = _log.info,
) -> RunStatus:
    """Execute one run into its directory, unless it is done already ("hit") and not `force`d.

    It leaves notebook.ipynb, notebook.html, what the notebook writes, and status.json, written last. Of several
    processes that execute one run, one does and the others wait, then find it done. `progress` shows on stderr what
    the notebook writes there; `stop`, once set, makes any end an interruption. A failure is a result, not an
    exception; raises InvalidInputError or DataFileError for bad input, StoreError if the status cannot be written.
    """
    stop = stop or threading.Event()
    with _held(run, stop, report) as held:
        (waiting,) = checked([run])  # now: it may have waited for hours
        before = current_status(waiting.run_dir)
        if not held:
            return waiting.ended("interrupted")
        if before is not None and not force and before.is_done(waiting.id):
            return waiting.ended("hit")
        if before is None and (waiting.run_dir / NOTEBOOK).exists():
            raise InvalidInputError(f"Expected a directory of a run, got {run.run_dir} with a {NOTEBOOK} of your own.")
        return _executed(waiting, before, timeout, progress, stop)


@contextmanager
def _held(run: RunStatus, stop: threading.Event, report: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of a run; False if `stop` was set before another process gave it free."""
    lock = run_lock(run.run_dir.resolve())
    with explained(Path(lock.lock_file)):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report(f"{run.name} waits: another process is running it")
            while not (lock.is_locked or stop.is_set()):
                with suppress(filelock.Timeout):
                    lock.acquire(timeout=0.5)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _executed(
    waiting: RunStatus, before: RunStatus | None, timeout: float | None, progress: bool, stop: threading.Event
) -> RunStatus:
    run_dir, clock = waiting.run_dir, time.monotonic()
    notebook = read_notebook(waiting.notebook)
    with explained(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    facts = {"state": "running", "started": datetime.now(UTC), "host": socket.gethostname(), "pid": os.getpid()}
    running = waiting.model_copy(update=facts)
    write_status(running)
    if before is not None:
        _remove_results(before)
    untouched = _stamps(run_dir)
    try:
        ended = _execute(notebook, running, timeout, progress, stop)
        if (run_dir / UNFINISHED).exists():
            _finish_notebook(run_dir / UNFINISHED, run_dir / NOTEBOOK)
        if ended.state == "done":
            (run_dir / KERNEL_LOG).unlink(missing_ok=True)
            export_html(run_dir / NOTEBOOK, run_dir / PAGE)
    except (OSError, NMLError) as error:  # such as a full disk
        ended = running.ended("failed", f"{type(error).__name__}: {error}")
    made = {name: stamp[0] for name, stamp in _stamps(run_dir).items() if untouched.get(name) != stamp}
    facts = {"finished": datetime.now(UTC), "seconds": round(time.monotonic() - clock, 2), "files": made}
    ended = ended.model_copy(update=facts)
    write_status(ended)
    return ended


def _remove_results(before: RunStatus) -> None:
    """Remove what an earlier run left: all that its status lists, or what one that was killed may have written."""
    run_dir = before.run_dir
    stale = [run_dir / name for name in (*before.files, NOTEBOOK, PAGE, UNFINISHED, KERNEL_LOG)]
    for pattern in (".tmp-*", "*.parquet") if before.state == "running" else (".tmp-*",):
        stale += run_dir.glob(pattern)
    for path in stale:
        if path.resolve().is_relative_to(run_dir) and not path.is_dir():
            path.unlink(missing_ok=True)


def _stamps(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file of a run, by its path: none that is hidden or of a run inside."""
    stamps = {}
    for root, directories, names in os.walk(run_dir):
        here = Path(root)
        directories[:] = sorted(d for d in directories if d[0] != "." and not (here / d / STATUS).exists())
        for path in (here / name for name in sorted(names) if name[0] != "." and name not in (STATUS, PLAN)):
            stat = path.lstat()
            stamps[path.relative_to(run_dir).as_posix()] = stat.st_size, stat.st_mtime_ns
    return stamps


def _execute(
    notebook: NotebookNode, run: RunStatus, timeout: float | None, progress: bool, stop: threading.Event
) -> RunStatus:
    """Run the notebook into unfinished.ipynb; a kernel that does not start is started again."""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its warnings are our errors, its errors our results
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook.metadata.setdefault("language_info", {"name": "python"})
    target = str(run.run_dir / UNFINISHED).replace("{", "{{").replace("}", "}}")  # papermill formats its paths
    options = {"kernel_name": "python3", "kernel_manager_class": ThisPythonManager, "progress_bar": False}
    options |= {"resources": {"metadata": {"path": str(run.run_dir)}}, "iopub_timeout": _DRAIN}
    options |= {"store_widget_state": False, "stderr_file": sys.stderr if progress else None}  # widgets: megabytes
    for attempt in range(1, _KERNEL_STARTS + 1):
        end = math.inf if timeout is None else time.monotonic() + timeout
        options["timeout_func"] = lambda cell, end=end: max(end - time.monotonic(), 0.001) if timeout else None
        try:  # in a context of its own: jupyter_core keeps its event loop there, which two threads must not share
            Context().run(papermill.execute_notebook, notebook, target, run.params, **options)
            return run.ended("interrupted" if stop.is_set() else "done")
        except (PapermillExecutionError, CellTimeoutError, RuntimeError, KeyboardInterrupt) as error:
            interrupted = isinstance(error, KeyboardInterrupt) or getattr(error, "ename", "") == "KeyboardInterrupt"
            if interrupted or stop.is_set():
                return run.ended("interrupted")
            if not (isinstance(error, RuntimeError) and _NO_START.search(str(error))):
                return _failed(run, error, timeout)
            _log.warning("Kernel start %d of %d failed: %s", attempt, _KERNEL_STARTS, error)
            stop.wait(attempt + os.getpid() % 10 / 10)  # runners that collided try again at different moments
    reason = f"the kernel did not start in {_KERNEL_STARTS} attempts; see {run.run_dir / KERNEL_LOG}"
    return run.ended("kernel died", reason)


def _failed(run: RunStatus, error: BaseException, timeout: float | None) -> RunStatus:
    """The run as an error of papermill ended it, and in which cell."""
    state: State = "failed"
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, PapermillExecutionError):
        reason = f"{error.ename}: {error.evalue}"
    elif isinstance(error, CellTimeoutError) and "IOPub" in str(error):  # the kernel drops what is not read in time
        reason = "it displayed more than could be read; show less"
    elif isinstance(error, CellTimeoutError):
        state, reason = "timed out", f"not finished within {timeout:g} s"
    elif isinstance(error, DeadKernelError):
        state, reason = "kernel died", f"the kernel died (out of memory, or killed); see {run.run_dir / KERNEL_LOG}"
    cell = _cell_at_work(run.run_dir)
    text = f"cell {cell}: {reason}" if cell else reason
    return run.ended(state, text if len(text) <= _ERROR_LIMIT else text[:_ERROR_LIMIT] + " …", cell)


def _cell_at_work(run_dir: Path) -> int | None:
    """The number in the source of the cell that was started last, from what papermill saved."""
    try:
        notes = [cell["metadata"] for cell in read_json(run_dir / UNFINISHED)["cells"]]
    except (DataFileError, LookupError, TypeError):
        return None
    own = [note for note in notes if not _INSERTED & set(note.get("tags", []))]
    started = [number for number, note in enumerate(own, 1) if note.get("papermill", {}).get("start_time")]
    return started[-1] if started else None


def _finish_notebook(unfinished: Path, path: Path) -> None:
    """Move an executed notebook to `path`, its streams joined and long results cut.

    (nbclient's own joining takes time that grows with the square of the length of a line.)
    """
    notebook = read_notebook(unfinished)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        streams: dict[str, NotebookNode] = {}
        outputs, cell.outputs = cell.outputs, []
        for output in outputs:
            text = output.get("data", {}).get("text/plain", "")
            if len(text) > TEXT_LIMIT:
                output.data["text/plain"] = text[:TEXT_LIMIT] + "\n… the rest is cut …\n"
            if output.output_type == "stream" and output.name in streams:
                streams[output.name].text += output.text
                continue
            cell.outputs.append(output)
            if output.output_type == "stream":
                streams[output.name] = output
        for output in streams.values():
            output.text = "\n".join(last_state(line).strip("\r") for line in output.text.split("\n"))
    with replacing(path) as temporary:
        # nbformat gives each number of a figure a line of its own, which is most of a file.
        temporary.write_text(json.dumps(json.loads(nbformat.writes(notebook)), ensure_ascii=False), encoding="utf-8")
    unfinished.unlink()


class ThisPythonManager(AsyncKernelManager):
    """A kernel of the interpreter that runs nml, whatever kernels are installed; crashes speak in kernel.log."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """Not one that is looked up by name."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += [f"--IPKernelApp.exec_lines={_START}"]
        # Relative ones mean where the user stands, not the directory of the run.
        places = {"NML_HOME": Store().root, "NML_DATASETS": datasets_dir(), "NML_DATA": data_dir()}
        env = {"PLOTLY_RENDERER": "plotly_mimetype", **{name: str(place) for name, place in places.items()}}
        return KernelSpec(argv=argv, env=env, display_name="Python 3", language="python")

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        """Start it in the directory of its run."""
        run_dir = Path(options["cwd"])
        self.connection_file = str(run_dir / ".kernel.json")  # one that is left by a killed runner is overwritten
        with (run_dir / KERNEL_LOG).open("ab") as log:
            await super().start_kernel(**options, stdout=log, stderr=log)
        _KERNELS[self] = run_dir


_KERNELS: WeakKeyDictionary[ThisPythonManager, Path] = WeakKeyDictionary()  # and their run directories


def interrupt_kernels(batch: str, run_dirs: Collection[Path], *, kill: bool) -> None:
    """Start no run of a batch any more; interrupt what its kernels in `run_dirs` do, as Ctrl-C does, or end them."""
    STOPPED[batch].set()
    for manager, run_dir in list(_KERNELS.items()):
        process = getattr(manager.provisioner, "process", None)
        if run_dir in run_dirs and process is not None and process.poll() is None:
            process.kill() if kill else process.send_signal(signal.SIGINT)
