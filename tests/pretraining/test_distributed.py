"""Pre-training and extraction in several processes give what one gives; killed or failing, they end and go on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nml_kit.errors import MissingDependencyError, StoreError
from nml_kit.features import extract_features
from nml_kit.features import features as features_module
from nml_kit.pretraining import pretrain
from nml_kit.pretraining.loop import CHECKPOINT
from nml_kit.store import Store, read_json, read_tensors, write_tensors
from tests.pretraining import together

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]


def launch(processes: int, mode: str, store: Store, reports: Path) -> subprocess.CompletedProcess:
    reports.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
               "-m", "tests.pretraining.together", mode, str(store.root), str(reports)]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)


def entry(store: Store, kind: str) -> tuple[dict, bytes]:
    """The manifest without times, and the bytes of the one data file."""
    (info,) = store.entries(kind)
    manifest = read_json(info.path / "manifest.json")
    (name,) = manifest["files"]
    return {k: v for k, v in manifest.items() if k not in ("created", "checksum")}, (info.path / name).read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Store and report of one process."""
    store = Store(tmp_path_factory.mktemp("alone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "SHARD_ROWS", together.SHARD_ROWS)
        patch.setitem(sys.modules, "accelerate", None)  # one process does without
        return store, together.whole(store)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Store and reports of two processes."""
    root = tmp_path_factory.mktemp("two")
    run = launch(2, "whole", Store(root / "store"), root / "reports")
    assert run.returncode == 0, run.stderr
    return Store(root / "store"), [json.loads((root / "reports" / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_features_and_their_manifest_are_the_same_bytes(alone, two):
    assert entry(two[0], "features") == entry(alone[0], "features")


def test_losses_agree_and_the_key_is_the_same(alone, two):
    """In float32 only the first epoch differs by rounding alone, on some processors: later ones make more of it."""
    np.testing.assert_allclose(two[1][0]["losses"][0], alone[1]["losses"][0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(two[1][0]["losses"], alone[1]["losses"], atol=1e-2, rtol=0)
    (one,), (other,) = alone[0].entries("backbone"), two[0].entries("backbone")
    assert one.digest == other.digest


def test_in_float64_batches_passes_and_statistics_are_exactly_those_of_one_process(alone, two):
    np.testing.assert_allclose(two[1][0]["double"], alone[1]["double"], rtol=1e-12)
    np.testing.assert_allclose(two[1][0]["weights"], alone[1]["weights"], rtol=1e-9, atol=1e-9)


def test_every_process_has_the_same_results(two):
    zero, one = ({**report, "errors": None} for report in two[1])
    assert zero == one


def test_an_error_in_one_process_ends_the_work_of_all_with_its_message(two):
    zero, one = (report["errors"]["one"] for report in two[1])
    assert one.startswith("InvalidInputError: Backbone 'not_finite_for_one_sample'")
    assert "NaN or infinity for sample 'sample-0025'" in one
    assert zero == f"ProcessFailedError: Stopped, because of an error in process 1 of 2: {one}"


def test_processes_that_ask_for_different_things_are_told_so(two):
    for report in two[1]:
        assert "InvalidInputError: Expected the same task, noise, recipe, backbone" in report["errors"]["different"]


def test_failed_and_killed_at_work_it_ends_and_goes_on_with_another_number_of_processes(alone, tmp_path, monkeypatch):
    store, reports = Store(tmp_path / "store"), tmp_path / "reports"
    started = time.monotonic()
    assert launch(2, "broken", store, reports).returncode != 0
    assert time.monotonic() - started < 60
    assert list(store.entries()) == []
    zero, one = (json.loads((reports / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == "InvalidInputError: a bad image"
    assert zero == f"ProcessFailedError: Stopped, because of an error in process 1 of 2: {one}"
    finished = {path.name for path in store.root.glob("work/*/shard-*")}
    assert {"shard-000000000.safetensors", "shard-000000020.safetensors"} <= finished
    assert len(finished) < 5

    monkeypatch.setattr(features_module, "SHARD_ROWS", together.SHARD_ROWS)
    alone_again = tmp_path / "alone again"
    alone_again.mkdir()
    together.extract(store, alone_again)
    assert len((alone_again / "0.txt").read_text(encoding="utf-8").split()) == 5 - len(finished)
    (values,) = (read_tensors(info.path / "features.safetensors")["values"] for info in store.entries("features"))
    np.testing.assert_array_equal(values, together.first_pixels(together.TASK.images))

    (checkpoint,) = store.root.glob(f"work/*/{CHECKPOINT}")
    before = torch.load(checkpoint, weights_only=True)["history"]
    card = pretrain(together.TASK, together.NOISE, recipe=together.RECIPE, seed=0, store=store, progress=False).card
    assert card["history"][:2] == before
    np.testing.assert_allclose([row["loss"] for row in card["history"]], alone[1]["losses"], atol=1e-2, rtol=0)


def test_several_processes_need_accelerate(task, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    backbone = together.load_backbone(together.first_pixels, fingerprint_of_weights="pixels")
    with pytest.raises(MissingDependencyError, match=r"in 2 processes: pip install 'nml_kit\[distributed\]'"):
        extract_features(task, backbone, store=store)


@pytest.mark.parametrize("rows", [0, 11], ids=["no shard", "a short shard"])
def test_a_missing_id_is_named(task, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(features_module, "SHARD_ROWS", 40)
    for start in (0, 80):
        write_tensors(tmp_path / f"shard-{start:09d}.safetensors", {"values": np.ones((min(40, 96 - start), 2))})
    if rows:
        write_tensors(tmp_path / "shard-000000040.safetensors", {"values": np.ones((rows, 2))})
    with pytest.raises(StoreError, match=rf"each of 96 ids, but got 0 for 'sample-00{40 + rows}' \({40 - rows} ids"):
        features_module._merged(task, tmp_path)
