"""The smallest study, whose networks all tests of it share."""

import pytest

from nml_kit.store import Store
from nml_kit.study import Profile, load_profile


@pytest.fixture(scope="session")
def profile() -> Profile:
    """Two ratios, two seeds, two tasks, narrow networks of both objectives."""
    return load_profile("smoke").changed(
        seeds=(0, 1),
        recipe={"architecture": "compact-resnet:8", "epochs": 1, "batch_size": 32},
        contrastive={"architecture": "clip-compact:8", "epochs": 2, "batch_size": 32},
        downstream={"id": ("digits",), "ood": {"icons": ("outline", "filled")}, "train_per_class": 4},
    )


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("study"))
