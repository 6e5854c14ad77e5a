"""Fixtures shared by all tests: a private store and small tasks whose classes can be learned in seconds."""

import os
import signal
from pathlib import Path

# Tests run side by side, one per core: more threads or processes than that only wait for each other.
# Set before torch is imported; tests that ask for `jobs` get them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
# A shell that starts tests in the background ignores Ctrl-C, and what tests start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from nml_kit.data import Task, data_dir
from nml_kit.store import Store

settings.register_profile("nml_kit", deadline=None)  # a busy machine is no fault
settings.load_profile("nml_kit")


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own store."""
    monkeypatch.setenv("NML_HOME", str(tmp_path / "home"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def smoke_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests that run shipped notebooks in profile "smoke": what one has made, others find there."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "smoke-home"


@pytest.fixture(scope="session")
def part_of_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of data whose reference results are those of two tasks: explorers of all take ten seconds to open."""
    place, shipped = tmp_path_factory.mktemp("data"), data_dir()
    (place / "reference").mkdir()
    for path in (*shipped.glob("*.parquet"), shipped / "reference" / "backbones"):
        (place / path.relative_to(shipped)).symlink_to(path)
    for path in (shipped / "reference").glob("*.parquet"):
        table = pq.read_table(path, filters=[("task", "in", ["digits", "icons"])])
        pq.write_table(table, place / path.relative_to(shipped))
    return place


@pytest.fixture
def two_tasks(part_of_reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference results are those of two tasks, in processes that a test starts too."""
    monkeypatch.setenv("NML_DATA", str(part_of_reference))


def make_task(per_class: int = 24, classes: int = 4, seed: int = 0) -> Task:
    """Grey images whose class is the quadrant (or half) that is bright; two domains that differ in brightness."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    count = len(labels)
    images = generator.integers(0, 90, size=(count, 32, 32, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        top, left = 16 * (label % 2), 16 * (label // 2)
        images[row, top : top + 16, left : left + 16] += 120
    domains = np.array(["bright", "dark"])[np.arange(count) % 2]
    images[domains == "dark"] //= 2
    splits = np.where(np.arange(count) % 4 == 3, "test", "train")
    ids = np.array([f"sample-{row:04d}" for row in range(count)])
    names = tuple(f"class {label}" for label in range(classes))
    return Task("quadrants", ids, labels, names, ids.copy(), domains, splits, images)


@pytest.fixture
def task() -> Task:
    return make_task()
