"""Real notebooks on a real Dask cluster: two worker processes on this machine, started once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster
from typer.testing import CliRunner

from nml_kit.batch import (
    plan_suite,
    pool,
    read_statuses,
    run_suite,
    suite_exit_code,
)
from nml_kit.cli import app
from tests.batch.test_run import planned, write_notebook

PARAMETERS = 'run_dir = ""\nrate = 0.5\nprofile = "smoke"'
WRITES = (
    "import json, pathlib\nrun = pathlib.Path(run_dir)\n(run / 'rows.json').write_text(json.dumps([run.name, rate]))"
)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def address(cluster):
    return cluster.scheduler_address


def nml(*words):
    return CliRunner().invoke(app, ["run", *map(str, words)])


def suite_of_two_stages(root: Path) -> Path:
    """Four runs in two stages; one fails, one needs what the first stage wrote."""
    write_notebook(root / "first.ipynb", WRITES, parameters=PARAMETERS)
    needs = "import json\nassert json.loads((run.parent / 'first' / 'rate=0.1' / 'rows.json').read_text())[1] == 0.1"
    write_notebook(root / "needs.ipynb", WRITES, needs, parameters=PARAMETERS)
    write_notebook(root / "fails.ipynb", "1 / 0", parameters=PARAMETERS)
    entries = [
        {"notebook": "../first.ipynb", "grid": {"rate": [0.1, 0.2]}},
        {"notebook": "../needs.ipynb", "stage": 1},
        {"notebook": "../fails.ipynb", "stage": 1},
    ]
    (root / "suites").mkdir()
    suite = root / "suites" / "two.yaml"
    suite.write_text(json.dumps({"name": "two", "profile": "smoke", "notebooks": entries}))
    return suite


def facts(runs: Path):
    """All that statuses and results say, without where and when."""
    return [
        (one.name, one.id, one.state, one.exit_code, one.cell, one.error, sorted(one.files),
         (path := one.run_dir / "rows.json").exists() and json.loads(path.read_text()))
        for one in read_statuses(runs)
    ]  # fmt: skip


def test_a_cluster_gives_what_threads_here_give(address, tmp_path):
    suite = suite_of_two_stages(tmp_path)
    here = run_suite(plan_suite(suite, runs=tmp_path / "here"), jobs=2)
    there = nml(suite, "--runs", tmp_path / "there", "--scheduler", address)
    assert there.exit_code == suite_exit_code(here) == 3
    assert facts(tmp_path / "there") == facts(tmp_path / "here")
    assert sorted(one[2] for one in facts(tmp_path / "there")) == ["done"] * 3 + ["failed"]
    assert {one.pid for one in read_statuses(tmp_path / "there")}.isdisjoint({os.getpid()})
    assert "nml: first/rate=0.1 started\n" in there.stderr
    assert "nml: fails failed after" in there.stderr
    assert not list((tmp_path / "there").rglob(".tmp-*"))
    again = nml(suite, "--runs", tmp_path / "there", "--scheduler", address, "--only", "first*")
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout.count("hit: ") == 2


def test_a_killed_worker_is_survived(address, tmp_path):
    """Its kernel, which would write forever, ends with it; the run is tried again in the same directory."""
    write_notebook(
        tmp_path / "slow.ipynb",
        "import os, pathlib\nrun = pathlib.Path(run_dir)\ntries = run.parent / 'tries.txt'\n"
        "first = not tries.exists()\n"
        "with tries.open('a') as file: print(os.getppid(), os.getpid(), file=file)",
        "while first:\n    with (run / 'ticks.txt').open('a') as file: file.write('tick')",
        "(run / 'rows.json').write_text('[1]')",
    )
    write_notebook(tmp_path / "other.ipynb", "open('rows.json', 'w').write('[2]')")
    plan = [planned(tmp_path / f"{name}.ipynb", tmp_path / "runs" / name) for name in ("slow", "other")]
    tries = tmp_path / "runs" / "tries.txt"

    def kill_first_worker():
        while not (tmp_path / "runs" / "slow" / "ticks.txt").exists():
            time.sleep(0.02)
        os.kill(int(tries.read_text().split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_first_worker)
    killer.start()
    lines = []
    results = run_suite(plan, scheduler=address, report=lines.append)
    killer.join()
    (worker, kernel), (next_worker, _) = (map(int, line.split()) for line in tries.read_text().splitlines())
    assert [(result.name, result.state, result.error) for result in results] == [
        ("slow", "done", ""), ("other", "done", ""),
    ]  # fmt: skip
    assert suite_exit_code(results) == 0
    assert worker != next_worker
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE
    assert "slow started again: who ran it is gone" in lines
    assert sorted(results[0].files) == ["notebook.html", "notebook.ipynb", "rows.json"]  # nothing of the first try
    assert [one.state for one in read_statuses(tmp_path / "runs")] == ["done", "done"]


def test_a_run_that_kills_its_worker_fails_at_last_and_takes_no_other_with_it(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    write_notebook(
        tmp_path / "deadly.ipynb",
        "import os, signal, time\nwith open('tries.txt', 'a') as file: file.write('x')\n"
        "os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)",
    )
    write_notebook(tmp_path / "innocent.ipynb", "x = 1")
    names = ("deadly", "innocent", "innocent-2")
    plan = [planned(tmp_path / f"{name.partition('-')[0]}.ipynb", tmp_path / "runs" / name) for name in names]
    deadly, *others = run_suite(plan, scheduler=cluster.scheduler_address)
    assert deadly.exit_code == 1
    assert deadly.error.startswith("every worker that tried it was lost, the last tcp://127.0.0.1:")
    assert (deadly.run_dir / "tries.txt").read_text() == "x"
    assert [(one.state, one.error) for one in others] == [("done", "")] * 2
    assert [one.state for one in read_statuses(tmp_path / "runs")] == ["interrupted", "done", "done"]


def test_workers_that_differ_are_refused_before_anything_starts(address, tmp_path, monkeypatch):
    notebook = write_notebook(tmp_path / "n.ipynb", WRITES)
    monkeypatch.setattr(pool, "__version__", "99")
    result = nml(notebook, "--runs", tmp_path / "runs", "--scheduler", address)
    assert result.exit_code == 2
    assert "got: tcp://127.0.0.1" in result.stderr
    assert ", not 99: install the same there." in result.stderr
    assert not list((tmp_path / "runs").rglob("status.json"))
    assert pool._problem("99", tmp_path / "none" / "probe") == (
        f"it does not see {tmp_path / 'none'}: choose --runs on a file system that all workers share."
    )


@pytest.mark.parametrize("wrong", ["tcp://127.0.0.1:9", "nonsense", "foo://here:1"])
def test_a_scheduler_that_is_not_there_is_told_soon(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_CONNECT_SECONDS", 1)
    notebook = write_notebook(tmp_path / "n.ipynb", WRITES)
    started = time.monotonic()
    result = nml(notebook, "--runs", tmp_path / "runs", "--scheduler", wrong)
    assert result.exit_code == 2
    assert f"Expected a Dask scheduler at {wrong}, got: " in result.stderr
    assert time.monotonic() - started < 5


def test_ctrl_c_interrupts_kernels_on_workers(address, tmp_path):
    code = "import pathlib, time\n(pathlib.Path(run_dir) / 'on.txt').touch()\ntime.sleep(60)"
    notebook = write_notebook(tmp_path / "long.ipynb", code)
    command = [notebook, "--grid", "rate=1,2,3", "--runs", tmp_path / "runs", "--scheduler", address]
    run = subprocess.Popen(
        [sys.executable, "-c", "from nml_kit.cli.main import app; app()", "run", *command],
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(list((tmp_path / "runs").rglob("on.txt"))) < 2:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130, errors
    assert sorted(one.state for one in read_statuses(tmp_path / "runs")) == ["interrupted"] * 2 + ["waiting"]
    stored = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("status.json")]
    assert [one["state"] for one in stored] == ["interrupted", "interrupted"]  # told by the workers, not guessed
    assert "Traceback" not in errors


def test_resources_are_asked_for_only_if_stated():
    assert pool.demanded({}) == {}
    assert pool.demanded({"CPU": 1.0, "GPU": 0.0, "memory": None}) == {}
    assert pool.demanded({"CPU": 4.0, "GPU": 1.0, "memory": "1.5 GiB"}) == {
        "CPU": 4,
        "GPU": 1,
        "memory": 1.5 * 2**30,
    }


def test_jobs_are_the_workers_threads_on_a_cluster(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", WRITES)
    result = nml(notebook, "--runs", tmp_path / "runs", "--scheduler", "tcp://x:1", "--jobs", 2)
    assert (result.exit_code, "Expected no --jobs" in result.stderr) == (2, True)
