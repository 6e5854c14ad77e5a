"""Ctrl-C, and several runners at one time: what was done stays, and nothing is executed twice."""

import os
import signal
import time

import nbformat
import pytest

from tests.batch.test_run import write_notebook
from tests.faults.running import Place, ended, wait_for

PARAMETERS = 'profile = "smoke"\nseed = 0\nrun_dir = ""'


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "p")


def ended_as(output: str) -> list[str]:
    """The states that `nml run` prints, before it says how to make a report."""
    *lines, _ = output.splitlines()
    return [line.split(":")[0] for line in lines]


def test_ctrl_c_keeps_what_was_written_and_exits_130(place):
    """The first run is done at once; the second and third wait for a file, in kernels side by side."""
    root = f"import pathlib, time\nroot = pathlib.Path({str(place.root)!r})\nprint('before')"
    wait = (
        "(pathlib.Path(run_dir) / 'partial.txt').write_text('x')\n"
        "while seed and not (root / 'go').exists(): time.sleep(0.05)"
    )
    notebook = write_notebook(place.root / "n.ipynb", root, wait, parameters=PARAMETERS)
    words = (notebook, "--grid", "seed=0,1,2", "--jobs", "3")
    process = place.start(*words)
    run_dirs = [place.runs / "smoke" / "n" / f"seed={seed}" for seed in (1, 2)]
    with ended(process):
        wait_for(lambda: all((one / "partial.txt").exists() for one in run_dirs))
        wait_for(lambda: place.states()["smoke/n/seed=0"] == "done")
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "To continue (what is done is kept): nml run" in errors
    assert not place.processes()
    assert list(place.states().values()) == ["done", "interrupted", "interrupted"]
    for one in run_dirs:
        assert (one / "partial.txt").read_text() == "x"
        cells = nbformat.read(one / "notebook.ipynb", as_version=4).cells
        assert [
            output.text for cell in cells for output in cell.get("outputs", []) if output.output_type == "stream"
        ] == ["before\n"]
    (place.root / "go").touch()
    again = place.run(*words)
    assert again.returncode == 0
    assert ended_as(again.stdout) == ["hit", "done", "done"]
    assert place.executions() == {"smoke/n/seed=0": 1, "smoke/n/seed=1": 2, "smoke/n/seed=2": 2}
    assert place.leftovers() == []


def test_ctrl_c_before_the_first_kernel_exits_130(place):
    notebook = write_notebook(place.root / "n.ipynb", "import time; time.sleep(60)", parameters=PARAMETERS)
    process = place.start(notebook)
    with ended(process):
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    wait_for(lambda: not place.processes(), 10)


def test_two_runners_on_one_directory_share_the_work(place):
    """Each run is executed once; both say that all is done."""
    code = "import pathlib, time\ntime.sleep(0.5)\n(pathlib.Path(run_dir) / 'seed.txt').write_text(str(seed))"
    notebook = write_notebook(place.root / "n.ipynb", code, parameters=PARAMETERS)
    words = (notebook, "--grid", "seed=0,1,2", "--jobs", "1")
    first, second = place.start(*words), place.start(*words)
    with ended(first, second):
        outputs = [process.communicate(timeout=100) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert place.executions() == {f"smoke/n/seed={seed}": 1 for seed in range(3)}
    assert sorted(state for output, _ in outputs for state in ended_as(output)) == ["done"] * 3 + ["hit"] * 3
    assert place.leftovers() == []


def test_a_second_runner_waits_and_takes_over_when_the_first_is_killed(place):
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(place.root / 'go')!r}).exists(): time.sleep(0.05)"
    notebook = write_notebook(place.root / "n.ipynb", wait, parameters=PARAMETERS)
    first = place.start(notebook)
    with ended(first):
        wait_for(place.executions)
        assert place.states() == {"smoke/n": "running"}
        second = place.start(notebook)
        with ended(second):
            told = second.stderr.readline() + second.stderr.readline()
            assert told == "nml: n started\nnml: n waits: another process is running it\n"
            assert place.executions() == {"smoke/n": 1}
            first.kill()
            wait_for(lambda: place.executions() == {"smoke/n": 2})
            (place.root / "go").touch()
            output, _ = second.communicate(timeout=60)
    assert output.startswith(f"done: {place.runs / 'smoke' / 'n' / 'notebook.html'}\n")
    assert place.states() == {"smoke/n": "done"}
    wait_for(lambda: not place.processes(), 10)
    assert place.leftovers() == []
