"""Pre-training and extraction killed with SIGKILL at random moments end with the rows of an undisturbed run."""

import multiprocessing
import random
import time

import numpy as np
import pytest

from nml_kit.backbones import load_backbone  # noqa: F401 (loaded once by the fork server, not by each child)
from nml_kit.features import extract_features, in_domain_fold
from nml_kit.heads import LinearProbe
from nml_kit.noise import inject_label_noise
from nml_kit.pretraining import Recipe, pretrain
from nml_kit.store import Store
from nml_kit.study import Request, fit_requests
from tests.conftest import make_task

KILLS = 20
RECIPE = Recipe(epochs=60, batch_size=12, learning_rate=0.05)


def train_extract_and_probe(root):
    task = make_task(per_class=8)
    store = Store(root)
    train = task.select(split="train")
    noise = inject_label_noise(train.labels, 0.2, num_classes=4, seed=0, ids=train.ids)
    backbone = pretrain(task, noise, recipe=RECIPE, seed=0, store=store, progress=False)
    features = extract_features(task, backbone, store=store, progress=False)
    head = LinearProbe(epochs=2, random_state=0)
    request = Request(features, in_domain_fold(task.name), {"LP": head}, "LP")
    [fit] = fit_requests([request], store=store, jobs=1, progress=False)
    context = {"experiment": "kill", "profile": "test", "recipe": "", "noise": "", "backbone": backbone.name,
               "ratio": 0.2, "objective": "supervised", "seed": 0}  # fmt: skip
    return fit.rows(**context), backbone.fingerprint, np.array(features.values)


@pytest.mark.timeout(300)
def test_killed_twenty_times_gives_the_same_rows(tmp_path):
    started = time.monotonic()
    expected = train_extract_and_probe(tmp_path / "undisturbed")
    duration = time.monotonic() - started
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pretraining.test_interruption"])
    moments = random.Random(0)
    killed = 0
    while killed < KILLS:  # the delays add up to about one undisturbed run
        child = context.Process(target=train_extract_and_probe, args=(tmp_path / "killed",))
        child.start()
        time.sleep(moments.uniform(0, duration / 10))
        if not child.is_alive():
            break
        child.kill()
        child.join()
        killed += 1
    rows, fingerprint, values = train_extract_and_probe(tmp_path / "killed")
    assert killed >= KILLS
    assert rows == expected[0]
    assert fingerprint == expected[1]
    np.testing.assert_array_equal(values, expected[2])
