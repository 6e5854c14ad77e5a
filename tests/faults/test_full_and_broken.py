"""Disks that are full or read-only, entries that rot, kernels that die, clocks that go backwards, floods of text."""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import pytest

from nml_kit.batch import (
    RunStatus,
    look_ahead,
    plan_notebook,
    read_statuses,
    run_suite,
    suite_exit_code,
    write_status,
)
from nml_kit.errors import StoreError
from nml_kit.store import Store, write_tensors
from tests.batch.test_run import write_notebook
from tests.faults.running import Place, ended, wait_for

PARAMETERS = 'profile = "smoke"\nseed = 0\nrun_dir = ""'
ENTRY = """
import numpy as np
from nml_kit.store import write_tensors
from nml_kit.store import Store

def build(work):
    write_tensors(work / "entry" / "features.safetensors", {"values": np.zeros(SIZE)})
    return {}

entry = Store().get_or_build("features", {"seed": seed}, build)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("NML_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def small_disk(home):
    """The store on a disk of 4 MB; `small_disk(options)` mounts it anew with these."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", home], check=True, capture_output=True)

    if not shutil.which("mount") or os.geteuid():
        pytest.skip("only root can mount a small disk")
    try:
        mount("size=4m")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no small disk: {error.stderr.decode()}")
    yield lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "-l", home], check=True)


def run(notebook: Path, runs: Path, **grid) -> list[RunStatus]:
    return run_suite(plan_notebook(notebook, runs=runs, grid=grid), jobs=2)


def states(runs: Path) -> dict[str, str]:
    return {status.name: status.state for status in read_statuses(runs)}


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def test_a_full_disk_is_told_and_leaves_nothing_torn(tmp_path, home, small_disk):
    """First the store's own file is too large for it; then not a byte is free for the plan."""
    notebook = write_notebook(tmp_path / "n.ipynb", ENTRY.replace("SIZE", "10**6"), parameters=PARAMETERS)
    runs = home / "runs"
    [failed] = run(notebook, runs)
    assert (failed.state, failed.exit_code) == ("failed", 1)
    assert failed.error.startswith("cell 3: StoreError: Expected to write")
    assert "Make room" in failed.error
    assert [path.name for path in home.rglob("*.safetensors")] == []
    fill(home / "ballast")
    with pytest.raises(StoreError, match=r"plan\.json, got: .*No space left on device.* Make room"):
        run(notebook, runs)
    assert states(runs) == {"smoke/n": "failed"}
    (home / "ballast").unlink()
    small_disk("size=40m")
    assert [status.state for status in run(notebook, runs)] == ["done"]
    assert states(runs) == {"smoke/n": "done"}
    assert [path for path in home.rglob("*") if path.name.startswith((".tmp", "unfinished"))] == []
    assert Store(home).verify() == []


def build(work):
    write_tensors(work / "entry" / "features.safetensors", {"values": np.zeros(3)})
    return {}


def test_what_a_read_only_store_holds_is_read_and_what_it_lacks_is_an_error(tmp_path, home, small_disk):
    store = Store(home)
    entry = store.get_or_build("features", {"seed": 0}, build)
    before = sorted(home.rglob("*"))
    small_disk("ro")
    assert store.get_or_build("features", {"seed": 0}, build) == entry
    assert store.verify() == []
    with pytest.raises(StoreError, match=r"Read-only file system.*set NML_HOME to a directory that is writable"):
        store.get_or_build("features", {"seed": 1}, build)
    assert sorted(home.rglob("*")) == before
    notebook = write_notebook(tmp_path / "n.ipynb", ENTRY.replace("SIZE", "3"), parameters=PARAMETERS)
    hit, miss = run(notebook, tmp_path / "runs", seed=[0, 1])
    assert (hit.state, miss.state) == ("done", "failed")
    assert "Read-only file system" in miss.error


def test_an_entry_that_rots_is_named_with_what_removes_it(tmp_path, home):
    """The bytes change between two looks of one notebook."""
    rot = (
        f"import pathlib\nrotten = pathlib.Path({str(tmp_path / 'rotten')!r})\n"
        "file = entry.path / 'features.safetensors'\n"
        "if not rotten.exists():\n    rotten.touch()\n    file.write_bytes(file.read_bytes()[:-1] + b'!')"
    )
    again = 'entry = Store().get_or_build("features", {"seed": seed}, build)'
    notebook = write_notebook(tmp_path / "n.ipynb", ENTRY.replace("SIZE", "3"), rot, again, parameters=PARAMETERS)
    [failed] = run(notebook, tmp_path / "runs")
    [entry] = Store(home).entries("features")
    named = f"cell 5: CorruptEntryError: Expected {entry.path / 'features.safetensors'} with sha256"
    assert failed.error.startswith(named)
    assert "`nml store prune --corrupt`" in failed.error
    assert Store(home).prune(corrupt_only=True) == [entry.path]
    assert [status.state for status in run(notebook, tmp_path / "runs")] == ["done"]
    assert Store(home).verify() == []


def test_a_kernel_that_was_killed_is_told_and_the_run_done_again(tmp_path):
    code = f"import os, pathlib\nmark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
    die = "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)"
    notebook = write_notebook(tmp_path / "n.ipynb", code + die, parameters=PARAMETERS)
    [dead] = results = run(notebook, tmp_path / "runs")
    assert (dead.state, suite_exit_code(results)) == ("kernel died", 138)
    assert dead.error.startswith("cell 3: the kernel died (out of memory, or killed)")
    assert states(tmp_path / "runs") == {"smoke/n": "kernel died"}
    assert [row.action for row in look_ahead(plan_notebook(notebook, runs=tmp_path / "runs"))] == ["retry"]
    assert [status.state for status in run(notebook, tmp_path / "runs")] == ["done"]
    assert not (tmp_path / "runs" / "smoke" / "n" / "kernel.log").exists()


def peak_bytes(pid: int) -> int:
    """The most memory a process had; 0 once it has ended. (ru_maxrss starts with that of the parent.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_hundred_megabytes_of_text_do_not_fill_the_runner(tmp_path):
    place = Place(tmp_path / "p")
    flood = (
        f"import pathlib, time\nroot = pathlib.Path({str(place.root)!r})\n(root / 'ready').touch()\n"
        "while not (root / 'go').exists(): time.sleep(0.05)\n"
        "for _ in range(100): print(('x' * 99 + '\\n') * 10_000, end='')"
    )
    notebook = write_notebook(place.root / "n.ipynb", flood, parameters=PARAMETERS)
    process = place.start(notebook)
    peaks = []
    with ended(process):
        wait_for((place.root / "ready").exists)
        before = peak_bytes(process.pid)
        (place.root / "go").touch()
        while process.poll() is None:
            peaks.append(peak_bytes(process.pid))
            time.sleep(0.02)
    assert process.returncode == 0
    assert max(peaks) - before < 100e6  # nbconvert, loaded for the page, is 60 MB of it
    run_dir = place.runs / "smoke" / "n"
    assert all((run_dir / f"notebook.{kind}").stat().st_size < 2e6 for kind in ("ipynb", "html"))
    assert "were cut" in nbformat.read(run_dir / "notebook.ipynb", as_version=4).cells[-1].outputs[0].text
    assert "were cut" in (run_dir / "notebook.html").read_text()


@pytest.mark.parametrize("day", ["2999-12-31", "1970-01-01"])
def test_a_clock_that_went_backwards_changes_nothing(tmp_path, day):
    """What was done tomorrow, or ended before it began, is done; the order is the plan's, durations stay positive."""
    notebook = write_notebook(tmp_path / "n.ipynb", parameters=PARAMETERS)
    plan = plan_notebook(notebook, runs=tmp_path / "runs", grid={"seed": [2, 0, 1]})
    for row in look_ahead(plan):
        row.run.run_dir.mkdir(parents=True)
        (row.run.run_dir / "rows.txt").write_text("abc")
        times = {"started": "2999-12-31T23:59:59+00:00", "finished": f"{day}T00:00:00+00:00", "seconds": 1.0}
        done = {"state": "done", "files": {"rows.txt": 3}, **times}
        write_status(RunStatus.model_validate(row.run.record() | done))
        for path in (row.run.run_dir, *row.run.run_dir.iterdir()):
            os.utime(path, (2**32, 2**32) if day > "2000" else (0, 0))
    assert [row.action for row in look_ahead(plan)] == ["hit"] * 3
    results = run_suite(plan)
    assert [result.state for result in results] == ["hit"] * 3
    statuses = read_statuses(tmp_path / "runs" / "smoke")
    assert [one.name for one in statuses] == ["n/seed=2", "n/seed=0", "n/seed=1"]
    store = Store(tmp_path / "store")
    entry = store.get_or_build("features", {"seed": 0}, build)
    os.utime(entry.path, (2**32, 2**32))
    assert store.find("features", {"seed": 0}) == entry
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        RunStatus.model_validate(results[0].record() | {"seconds": -1.0})
