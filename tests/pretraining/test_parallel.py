"""Calls side by side in processes that end with the one that started them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nml_kit.pretraining import in_parallel
from tests.faults.running import wait_for


def note_and_sleep(path: str, seconds: float) -> None:
    Path(path).with_suffix(".part").write_text(str(os.getpid()))
    Path(path).with_suffix(".part").rename(path)
    time.sleep(seconds)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_all_calls_are_made_in_other_processes(tmp_path):
    calls = [(note_and_sleep, (str(tmp_path / name), 0.0)) for name in "abc"]
    in_parallel(calls, 2, "")
    assert os.getpid() not in {int((tmp_path / name).read_text()) for name in "abc"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "from tests.pretraining.test_parallel import note_and_sleep; "
        "from nml_kit.pretraining import in_parallel; "
        f"in_parallel([(note_and_sleep, ({str(tmp_path)!r} + '/' + name, 300.0)) for name in 'ab'], 2, '')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        wait_for(lambda: len(list(tmp_path.glob("[ab]"))) == 2, 100)
    finally:
        parent.kill()
        parent.wait()
    workers = [int(path.read_text()) for path in tmp_path.glob("[ab]")]
    wait_for(lambda: all(map(ended, workers)), 20)
