"""Kernels for batch runs: this very Python, in the run's directory, on sockets of this user alone."""

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default
from traitlets.config import Config

KERNEL_LOG = "kernel.log"
_LOCK = "nml-kernel.lock"
_OUTPUT = str(Path(__file__).with_name("_kernel_output.py"))
_RUNNING: set["ThisPythonManager"] = set()


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
        argv.append(f"--IPKernelApp.exec_lines={bound}")
        env = {"PLOTLY_RENDERER": "plotly_mimetype"}
        return KernelSpec(argv=argv, env=env, display_name=kernel_name, language="python")


class ThisPythonManager(AsyncKernelManager):
    """Named without an underscore: traitlets takes settings only for classes with a capital first."""

    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPythonSpec()

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        with (Path(options["cwd"]) / KERNEL_LOG).open("ab") as log:  # what the process itself says: crashes, mostly
            await super().start_kernel(**options, stdout=log, stderr=log)
        _RUNNING.add(self)

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        _RUNNING.discard(self)
        await super().cleanup_resources(restart=restart)


def interrupt_kernels(*, kill: bool = False) -> None:
    """Interrupt the cell that each kernel of this process is running, as Ctrl-C in a notebook does; or end it."""
    for manager in list(_RUNNING):
        process = getattr(manager.provisioner, "process", None)
        if process is not None and process.poll() is None:
            process.kill() if kill else process.send_signal(signal.SIGINT)
