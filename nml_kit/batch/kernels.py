"""Kernels for batch runs: this very Python, in the run's directory, on sockets of this user alone."""

import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import filelock
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default
from traitlets.config import Config

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KERNEL_LOG = "kernel.log"
_LOCK = "nml-kernel.lock"
_OUTPUT = str(Path(__file__).with_name("kernel_output.py"))
_PARENT = str(Path(__file__).with_name("kernel_parent.py"))
_RUNNING: dict["ThisPythonManager", Path] = {}  # and their run directories


@contextmanager
def kernel_options(run_dir: Path) -> Iterator[dict[str, Any]]:
    """What papermill hands on to nbclient: a kernel of this Python in `run_dir`, on sockets of this user alone."""
    with _connection_directory() as directory:
        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its warnings are our errors, its errors our results
        connection = {"connection_file": str(directory / "kernel.json")}
        if os.name == "posix":
            connection["transport"] = "ipc"  # TCP ports are sometimes taken by another kernel that starts just now
        yield {
            "kernel_manager_class": ThisPythonManager,
            "config": Config({"ThisPythonManager": connection}),
            "resources": {"metadata": {"path": str(run_dir)}},
            "store_widget_state": False,  # megabytes, for widgets that no page shows
        }


@contextmanager
def _connection_directory() -> Iterator[Path]:
    """A directory of this user alone, locked while it is used; those that killed runners left are deleted."""
    made = Path(tempfile.mkdtemp(prefix="new-nml-"))
    for old in made.parent.glob("nml-*"):
        with suppress(OSError, filelock.Timeout):
            if old.lstat().st_uid == made.stat().st_uid and (old / _LOCK).is_file():
                with filelock.FileLock(old / _LOCK, timeout=0):
                    shutil.rmtree(old)
    with filelock.FileLock(made / _LOCK):
        directory = made.rename(made.with_name(made.name.removeprefix("new-")))  # from now on others see it: locked
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


class ThisPythonSpec(KernelSpecManager):
    """The interpreter that runs nml, whatever kernels are installed under the name python3."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        bound = f"__import__('runpy').run_path({_OUTPUT!r})['load_ipython_extension'](get_ipython())"
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        alone = f"__import__('runpy').run_path({_PARENT!r})['end_with_parent']()"
        argv += [f"--IPKernelApp.exec_lines={line}" for line in (alone, bound)]
        env = {"PLOTLY_RENDERER": "plotly_mimetype"}
        return KernelSpec(argv=argv, env=env, display_name=kernel_name, language="python")


class ThisPythonManager(AsyncKernelManager):
    """Named without an underscore: traitlets takes settings only for classes with a capital first."""

    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPythonSpec()

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        run_dir = Path(options["cwd"])
        with (run_dir / KERNEL_LOG).open("ab") as log:  # what the process itself says: crashes, mostly
            _lock(log)  # inherited: locked as long as the kernel lives
            await super().start_kernel(**options, stdout=log, stderr=log)
        _RUNNING[self] = run_dir

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        _RUNNING.pop(self, None)
        await super().cleanup_resources(restart=restart)


def interrupt_kernels(run_dirs: Collection[Path] | None = None, *, kill: bool = False) -> None:
    """Interrupt what kernels of this process, all or those in `run_dirs`, do, as Ctrl-C in a notebook; or end them."""
    for manager, run_dir in list(_RUNNING.items()):
        process = getattr(manager.provisioner, "process", None)
        if (run_dirs is None or run_dir in run_dirs) and process is not None and process.poll() is None:
            process.kill() if kill else process.send_signal(signal.SIGINT)


def await_orphan(run_dir: Path, stop: threading.Event) -> None:
    """Wait until the kernel of a runner that was killed, which ends moments later, writes into `run_dir` no more."""
    if (path := run_dir / KERNEL_LOG).exists():
        with path.open("rb+") as log:
            while not (_lock(log) or stop.is_set()):
                stop.wait(0.1)


def _lock(file: BinaryIO) -> bool:
    """Lock a file, False if another process has it locked; True, too, where there are no such locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
