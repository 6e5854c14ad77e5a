"""Statuses and plans on disk, written by hand: no kernel starts."""

import json
from pathlib import Path

import filelock
import pytest

from nml_kit.batch import RunStatus, current_status, read_statuses, run_lock, write_plan, write_status
from nml_kit.errors import InvalidInputError


def status(root: Path, name: str, state: str, **more) -> RunStatus:
    (root / name).mkdir(parents=True, exist_ok=True)
    return RunStatus(name=name, notebook=Path("/n.ipynb"), run_dir=root / name, state=state, id="one", **more)


def states(runs: Path) -> dict[str, str]:
    return {one.name: one.state for one in read_statuses(runs)}


def test_planned_runs_wait_until_they_have_a_result_of_their_own(tmp_path):
    group = tmp_path / "study"
    planned = [status(group, name, "waiting", source=Path("/s.yaml")) for name in ("b/x=1", "a", "c")]
    write_plan(group, planned)
    write_status(status(group, "a", "done", seconds=2.0))
    write_status(status(group, "c", "done").model_copy(update={"id": "of an older notebook"}))
    write_status(status(tmp_path, "unplanned", "failed", error="cell 3: no"))
    expected = {"study/b/x=1": "waiting", "study/a": "done", "study/c": "waiting", "unplanned": "failed"}
    assert states(tmp_path) == expected
    assert list(states(tmp_path)) == list(expected)
    assert states(group) == {"b/x=1": "waiting", "a": "done", "c": "waiting"}


def test_a_plan_replaces_what_the_same_source_asked_for(tmp_path):
    for source, names in (("s", "ab"), ("t", "cd"), ("s", "bc")):
        write_plan(tmp_path, [status(tmp_path, name, "waiting", source=Path(source)) for name in names])
    assert sorted(states(tmp_path)) == ["b", "c", "d"]


def test_who_says_running_but_holds_no_lock_was_interrupted(tmp_path):
    write_status(status(tmp_path, "r", "running"))
    assert current_status(tmp_path / "r").state == "interrupted"
    with run_lock(tmp_path / "r") as lock:
        Path(lock.lock_file).parent.mkdir(exist_ok=True)
        assert current_status(tmp_path / "r").state == "running"
    assert states(tmp_path) == {"r": "interrupted"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": "fine"}', '"x"', "\\xff"])
def test_a_broken_status_is_told_not_hidden(tmp_path, text):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "status.json").write_text(text)
    assert states(tmp_path) == {"r": "unreadable"}
    assert not current_status(tmp_path / "r").is_done("")


def test_a_run_is_done_only_with_its_id_and_all_its_files(tmp_path):
    one = status(tmp_path, "r", "done", files={"rows.parquet": 3})
    (tmp_path / "r" / "rows.parquet").write_bytes(b"123")
    assert one.is_done("one")
    assert not one.is_done("two")
    assert not one.ended("failed").is_done("one")
    (tmp_path / "r" / "rows.parquet").write_bytes(b"12")
    assert not one.is_done("one")
    (tmp_path / "r" / "rows.parquet").unlink()
    assert not one.is_done("one")


def test_a_plan_cannot_name_what_lies_elsewhere(tmp_path):
    outside = status(tmp_path, "inside", "waiting").record() | {"name": "../../etc"}
    (tmp_path / "plan.json").write_text(json.dumps({"runs": [outside]}))
    with pytest.raises(InvalidInputError, match="found none: use `nml run` first"):
        read_statuses(tmp_path)


def test_a_look_at_a_status_leaves_nothing(tmp_path):
    write_status(status(tmp_path, "r", "running"))
    read_statuses(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["status.json"]
    assert isinstance(run_lock(tmp_path / "r"), filelock.BaseFileLock)
