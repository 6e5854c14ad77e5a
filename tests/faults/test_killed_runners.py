"""Runners killed with SIGKILL at random moments and started again end where an undisturbed one does.

Small here. With 60 runs of the shipped notebooks in the smoke profile, some minutes, by hand:

    python -m tests.faults.test_killed_runners --kills 10
"""

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.batch.test_run import write_notebook
from tests.faults.running import Place, ended, wait_for

pytestmark = pytest.mark.timeout(300)
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
TASKS, METHODS = ["digits", "fashion", "icons", "icons-rare", "emoji"], ["LP", "MLP", "NMTune"]
SIXTY = [
    {"notebook": "00_start_here.ipynb"},
    {"notebook": "01_noise.ipynb", "stage": 1, "grid": {
        "ratio": [0.1, 0.2, 0.3, 0.4, 0.5], "kind": ["uniform", "asymmetric"], "seed": [0, 1, 2, 3]}},
    {"notebook": "02_transfer.ipynb", "stage": 1, "grid": {"methods": [[name] for name in METHODS]}},
    {"notebook": "03_spectra.ipynb", "stage": 1, "grid": {"task": TASKS, "method": METHODS}},
    {"notebook": "04_nmtune.ipynb", "stage": 1},
]  # fmt: skip


def is_interrupted_now(place: Place, process: subprocess.Popen, before: Counter) -> bool:
    """Whether a kernel started since `before` is at work, so that a kill costs something, or all work is done."""
    executions = place.executions()
    at_work = any(state == "running" and executions[run] > before[run] for run, state in place.states().items())
    return at_work or process.poll() is not None


def kill_and_continue(suite: Path, undisturbed: Place, place: Place, *, kills: int) -> int:
    """Run a suite undisturbed, then kill it `kills` times within about as long; return the number of runs."""
    begun = time.monotonic()
    done = undisturbed.run(suite, timeout=3600)
    assert done.returncode == 0, done.stderr
    duration = time.monotonic() - begun
    print(f"undisturbed: {duration:.0f} s", flush=True)
    assert set(undisturbed.executions().values()) == {1}
    moments = random.Random(kills)
    for _ in range(kills):
        finished = {name for name, state in place.states().items() if state == "done"}
        before = place.executions()
        process = place.start(suite)
        with ended(process):
            time.sleep(moments.uniform(0.1, 0.9) * duration * min(0.5, 3 / kills))
            wait_for(partial(is_interrupted_now, place, process, before), 200)
        after = place.executions()
        print(f"killed with {len(finished)} done before, {sum(after.values())} kernels started in all", flush=True)
        assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    done = place.run(suite, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert set(place.states().values()) == {"done"}
    assert place.results() == undisturbed.results()
    assert sum(place.executions().values()) > len(place.results()) > 0
    wait_for(lambda: not place.processes(), 20)
    assert place.leftovers() == undisturbed.leftovers() == []
    return len(place.states())


def test_a_grid_killed_and_continued(tmp_path):
    code = "import pathlib, time\ntime.sleep(0.5)\n(pathlib.Path(run_dir) / 'square.txt').write_text(str(seed * seed))"
    write_notebook(tmp_path / "n.ipynb", code, parameters='profile = "smoke"\nseed = 0\nrun_dir = ""')
    suite = tmp_path / "s.yaml"
    entry = {"notebook": "n.ipynb", "grid": {"seed": [0, 1, 2]}}
    suite.write_text(json.dumps({"name": "s", "profile": "smoke", "notebooks": [entry]}))
    assert kill_and_continue(suite, Place(tmp_path / "a"), Place(tmp_path / "b"), kills=2) == 3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="k-") as directory:
        sixty = Path(directory) / "sixty.yaml"
        for one in NOTEBOOKS.glob("*.ipynb"):
            (Path(directory) / one.name).write_bytes(one.read_bytes())
        sixty.write_text(json.dumps({"name": "sixty", "profile": "smoke", "notebooks": SIXTY}))
        places = Place(Path(directory) / "a"), Place(Path(directory) / "b")
        count = kill_and_continue(sixty, *places, kills=chosen.kills)
        print(f"{count} runs, killed {chosen.kills} times: the same results, nothing left behind")
