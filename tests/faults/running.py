"""`nml run` in its own processes, watched from outside: who still runs, what ran how often, what is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

from nml_kit.batch import read_statuses

NML = [sys.executable, "-c", "from nml_kit.cli.main import app; app(prog_name='nml')"]
# In each kernel, before anything else: its directory, which is that of the run, is noted.
_COUNT = """
import os, sys
if "ipykernel_launcher" in sys.orig_argv:
    with open(os.environ["NML_TEST_STARTS"], "a") as log:
        log.write(os.getcwd() + "\\n")
"""


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


class Place:
    """A directory with a store, runs and temporary files of its own, and the processes that were started for it."""

    def __init__(self, root: Path) -> None:
        self.root, self.home, self.runs, self.starts = root, root / "home", root / "runs", root / "starts"
        self.mark = f"NML_TEST_MARK={uuid.uuid4().hex}"
        for path in (root / "site", root / "tmp"):
            path.mkdir(parents=True)
        (root / "site" / "sitecustomize.py").write_text(_COUNT)
        name, value = self.mark.split("=")
        self.environment = os.environ | {name: value, "NML_HOME": str(self.home), "TMPDIR": str(root / "tmp")}
        self.environment |= {"PYTHONPATH": str(root / "site"), "NML_TEST_STARTS": str(self.starts)}
        self.environment["TORCHINDUCTOR_CACHE_DIR"] = str(root / "torch")  # torch makes it, by default in TMPDIR

    def start(self, *words: object) -> subprocess.Popen:
        """Start `nml run`, in a process group of its own."""
        return subprocess.Popen(
            [*NML, "run", *map(str, words), "--runs", str(self.runs)], env=self.environment, text=True,
            cwd=Path(__file__).parents[2], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: object, timeout: float = 100) -> subprocess.CompletedProcess:
        """Run `nml run` to its end."""
        process = self.start(*words)
        with ended(process):
            output, errors = process.communicate(timeout=timeout)
        assert "Traceback" not in errors, errors
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def states(self) -> dict[str, str]:
        """What the runs that have begun are doing, by name."""
        return {status.name: status.state for status in read_statuses(self.runs)} if self.runs.exists() else {}

    def executions(self) -> Counter:
        """How many kernels were started for each run."""
        lines = self.starts.read_text().splitlines() if self.starts.exists() else []
        return Counter(str(Path(line).relative_to(self.runs)) for line in lines)

    def processes(self) -> list[int]:
        """All processes that were started for this place and live, kernels and their children too (Linux)."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def leftovers(self) -> list[str]:
        """Temporary and unfinished files; hidden directories of locks stay, and what Dask deletes at its next start."""
        names = {"unfinished.ipynb", "kernel.log"}
        paths = [path for path in (*self.runs.rglob("*"), *self.home.rglob("*")) if not path.is_dir()]
        left = [path for path in paths if path.name.startswith(".tmp") or path.name in names]
        left += [path for path in (self.root / "tmp").iterdir() if path.name != "dask-scratch-space"]
        left += (self.home / "work").glob("*")
        return [str(path.relative_to(self.root)) for path in left]

    def results(self) -> dict[str, bytes]:
        """What the notebooks wrote, by its place."""
        made = (path for path in self.runs.rglob("*") if path.suffix in (".parquet", ".txt"))
        return {str(path.relative_to(self.runs)): path.read_bytes() for path in made}


@contextlib.contextmanager
def ended(*processes: subprocess.Popen):
    """Kill what still runs at the end."""
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
