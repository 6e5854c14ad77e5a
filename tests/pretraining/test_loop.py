"""Interrupted after an epoch, or killed at any moment, every trainer ends with the bytes of an undisturbed run."""

import multiprocessing
import random
import time

import numpy as np
import pytest

from nml_kit.backbones import load_backbone  # noqa: F401 (loaded once by the fork server, not by each child)
from nml_kit.features import extract_features, in_domain_fold
from nml_kit.heads import LinearProbe
from nml_kit.noise import inject_caption_noise, inject_label_noise
from nml_kit.pretraining import ContrastiveRecipe, Recipe, loop, pretrain
from nml_kit.store import Store
from nml_kit.study import Request, fit_requests
from tests.conftest import make_task
from tests.pretraining import at_scale

TASK = make_task(per_class=8)
TRAIN = TASK.select(split="train")
LABELS = inject_label_noise(TRAIN.labels, 0.2, num_classes=4, seed=0, ids=TRAIN.ids)
CAPTIONS = inject_caption_noise(TRAIN.captions.tolist(), 0.2, seed=0, ids=TRAIN.ids)
QUICK = Recipe(architecture="compact-resnet:8", epochs=3, batch_size=12)
PAIRS = ContrastiveRecipe(architecture="clip-compact:8", epochs=3, batch_size=8)
KILLS = 6


def labels(data, store, recipe=QUICK):
    return pretrain(TASK, LABELS, recipe=recipe, seed=0, store=store, progress=False)


def captions(data, store):
    return pretrain(TASK, CAPTIONS, recipe=PAIRS, seed=0, store=store, progress=False)


def weights(store: Store) -> bytes:
    (info,) = store.entries("backbone")
    return (info.path / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("train", [labels, captions, at_scale.supervised, at_scale.contrastive])
def test_interrupted_after_every_epoch_it_ends_with_the_same_bytes(train, data, tmp_path, monkeypatch):
    undisturbed, disturbed = Store(tmp_path / "undisturbed"), Store(tmp_path / "disturbed")
    expected = train(data, undisturbed)
    write, epochs = loop.write_checkpoint, []

    def write_and_stop(path, training, history):
        write(path, training, history)
        epochs.append(len(history))
        if len(history) < training.epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", write_and_stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(data, disturbed)
    resumed = train(data, disturbed)
    assert epochs == [1, 2, 3]
    assert weights(disturbed) == weights(undisturbed)
    assert resumed.card == expected.card


def train_extract_and_probe(root):
    store = Store(root)
    backbone = labels(None, store, Recipe(architecture="compact-resnet:8", epochs=40, batch_size=12))
    features = extract_features(TASK, backbone, store=store, progress=False)
    head = LinearProbe(epochs=2, random_state=0)
    request = Request(features, in_domain_fold(TASK.name), {"LP": head}, "LP")
    [fit] = fit_requests([request], store=store, jobs=1, progress=False)
    context = {"experiment": "kill", "profile": "test", "recipe": "", "noise": "", "backbone": backbone.name}
    context |= {"ratio": 0.2, "objective": "supervised", "seed": 0}
    return fit.rows(**context), backbone.fingerprint, np.array(features.values)


@pytest.mark.timeout(300)
def test_killed_six_times_gives_the_same_rows(tmp_path):
    started = time.monotonic()
    expected = train_extract_and_probe(tmp_path / "undisturbed")
    duration = time.monotonic() - started
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pretraining.test_loop"])
    moments = random.Random(0)
    killed = 0
    while killed < KILLS:  # the delays add up to about one undisturbed run
        child = context.Process(target=train_extract_and_probe, args=(tmp_path / "killed",))
        child.start()
        time.sleep(moments.uniform(0, duration / 4))
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
