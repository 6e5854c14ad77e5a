"""Pre-training at scale on miniatures in the real formats, by one process and by two."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nml_kit.backbones import ImageTower, build_clip, load_backbone, named_classes, project
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.pretraining import ContrastiveRecipe, Processes, ShardRecipe, TimmRecipe, is_pretrained_on_shards
from nml_kit.pretraining.loop import seeded_libraries
from nml_kit.pretraining.streams import PairStreams, TaskImages, augmented
from nml_kit.pretraining.timm import TimmTraining, shared_pairs
from nml_kit.store import Store, read_tensors
from nml_kit.study import Origin, Profile, load_profile, pretrained_backbone, zero_shot_predictions
from tests import miniatures
from tests.conftest import make_task
from tests.pictures import encoded, pixels
from tests.pretraining import at_scale

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]
RUNS = {"supervised": at_scale.supervised, "contrastive": at_scale.contrastive}
both = pytest.mark.parametrize("objective", RUNS)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Store:
    """What one process gives."""
    store = Store(tmp_path_factory.mktemp("alone"))
    for run in RUNS.values():
        run(data, store)
    return store


def launch(processes: int, data: Path, store: Store, reports: Path) -> subprocess.CompletedProcess:
    reports.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
               "-m", "tests.pretraining.at_scale", str(data), str(store.root), str(reports)]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NML_DATASETS": str(data)}, capture_output=True, text=True, timeout=120
    )


def stored(store: Store, objective: str):
    found = [store.open(info.kind, info.digest) for info in store.entries("backbone")]
    (entry,) = (entry for entry in found if entry.card["objective"] == objective)
    return entry


def weights(store: Store, objective: str) -> dict[str, np.ndarray]:
    return read_tensors(stored(store, objective).path / "weights.safetensors")


def losses(entry) -> list[float]:
    return [row["loss"] for row in entry.card["history"]]


def test_a_miniature_imagenet_is_learned_and_opened_with_its_transform(data, tmp_path):
    recipe = at_scale.TIMM.model_copy(update={"epochs": 6, "repeats": 1})
    backbone = at_scale.supervised(data, Store(tmp_path), recipe)
    last = backbone.card["history"][-1]
    assert last["test_accuracy"] >= 0.5  # chance: 0.125
    assert last["memorised"] < last["test_accuracy"]
    assert (backbone.transform.resize, backbone.transform.crop) == (int(40 / 0.95), 40)
    task, _ = at_scale.noisy_imagenet(data)
    images = task.inputs(np.arange(6))
    assert len({image.shape for image in images}) > 1
    assert backbone(images).shape == (6, 96)


def test_a_vision_transformer_is_trained_by_the_deit_procedure(data, tmp_path):
    recipe = TimmRecipe(procedure="DeiT", architecture="timm:test_vit", epochs=1, batch_size=32, train_size=160,
                        test_size=160)  # fmt: skip
    backbone = at_scale.supervised(data, Store(tmp_path), recipe)
    assert backbone(np.zeros((2, 50, 60, 3), dtype=np.uint8)).shape == (2, 64)


@pytest.mark.parametrize("procedure", ["A1", "A2", "A3"])
def test_sizes_and_crops_are_those_of_timms_own_weights(procedure):
    recipe = TimmRecipe(procedure=procedure)
    config = timm.create_model(f"resnet50.{procedure.lower()}_in1k").pretrained_cfg
    assert config["input_size"] == (3, recipe.train_size, recipe.train_size)
    assert recipe.interpolation == config["interpolation"]
    assert recipe.test_crop in (config["crop_pct"], config["test_crop_pct"])


def test_an_unknown_setting_or_odd_passes_are_refused():
    with pytest.raises(ValueError, match="epoch"):
        TimmRecipe(procedure="A2", epoch=3)
    with pytest.raises(ValueError, match=r"batch_size=36 in accumulate=4 passes; choose a multiple of 8"):
        TimmRecipe(procedure="A2", batch_size=36, accumulate=4)
    with pytest.raises(ValueError, match=r"7 of batch_size=1024"):
        ShardRecipe(streams=7)


def test_the_loss_of_the_pairs_falls(alone):
    first, *_, last = losses(stored(alone, "contrastive"))
    assert last < first


@pytest.fixture(scope="module")
def two(data, tmp_path_factory) -> tuple[Store, list[dict]]:
    """What two processes give."""
    root = tmp_path_factory.mktemp("two")
    store = Store(root / "store")
    run = launch(2, data, store, root / "reports")
    assert run.returncode == 0, run.stderr
    zero, one = ((root / "reports" / f"{rank}.json").read_text() for rank in (0, 1))
    assert zero == one
    return store, json.loads(zero)


@both
def test_two_processes_give_what_one_gives(objective, alone, two):
    one = stored(alone, objective)
    other = two[0].open("backbone", one.digest)
    # The first epoch differs by rounding alone; optimisers that divide by small numbers then make more of it.
    np.testing.assert_allclose(losses(other)[0], losses(one)[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(losses(other), losses(one), atol=1e-3, rtol=0)


def test_the_paper_profile_is_run_end_to_end_by_one_process_and_by_two(data, two, tmp_path, monkeypatch):
    monkeypatch.setenv("NML_DATASETS", str(data))
    alone, together = (pd.DataFrame(rows) for rows in (at_scale.studies(Store(tmp_path)), two[1]["studies"]))
    columns = ["objective", "ratio", "seed", "task", "protocol", "train_domain", "test_domain", "method", "metric", "n"]
    pd.testing.assert_frame_equal(alone[columns], together[columns])
    assert set(alone["ratio"].dropna()) == {0.0, 0.25}
    assert alone["ratio"].isna().any()  # the untrained baseline
    ood = alone[alone["protocol"] == "OOD"]
    assert set(zip(ood["train_domain"], ood["test_domain"], strict=True)) == {
        ("real", "sketch"), ("real", "clipart"), ("sketch", "real"), ("sketch", "clipart"), ("imagenet", "imagenet-r"),
    }  # fmt: skip
    # Features of clean and of noisy pre-training differ: the noise has reached the networks.
    wide = alone[alone["ratio"].notna()].pivot_table("value", [columns[0], *columns[3:9]], "ratio")
    assert (wide[0.0] != wide[0.25]).groupby("objective").any().all()


def test_texts_as_glues_are_studied_by_one_process_and_by_two(data, two, tmp_path, monkeypatch):
    monkeypatch.setenv("NML_DATASETS", str(data))
    alone, together = (pd.DataFrame(rows) for rows in (at_scale.text_study(data, Store(tmp_path)), two[1]["texts"]))
    assert set(zip(alone["protocol"], alone["train_domain"], alone["test_domain"], strict=True)) == {
        ("ID", "glue:sst2", "glue:sst2"), ("OOD", "glue:sst2", "imdb"),
    }  # fmt: skip
    assert set(alone.loc[alone["protocol"] == "OOD", "n"]) == {10}
    pd.testing.assert_frame_equal(alone, together)


def test_shards_that_are_nowhere_name_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("NML_DATASETS", str(tmp_path / "none"))
    with pytest.raises(DataFileError, match=r"shards of profile 'paper' in .*none.yfcc15m, .* say in NML_DATASETS"):
        pretrained_backbone(load_profile("paper"), make_task(), Origin(0.1, 0, "contrastive"))


def test_a_profile_that_mixes_recipes_is_refused():
    paper = load_profile("paper").model_dump()
    with pytest.raises(ValueError, match="a ShardRecipe as `contrastive` with"):
        Profile.model_validate(paper | {"contrastive": ContrastiveRecipe()})
    with pytest.raises(ValueError, match=r"(?s)streems.*Extra inputs"):
        Profile.model_validate(paper | {"contrastive": {"streems": 8}})
    assert Profile.model_validate(paper) == load_profile("paper")


def test_the_same_images_are_mixed_however_many_processes_there_are():
    places = np.arange(10, 34)
    for count in (1, 2, 5):
        parts = [shared_pairs(places, Processes(count, index, torch.device("cpu"))) for index in range(count)]
        pairs = {frozenset(pair) for part in parts for pair in zip(part, reversed(part), strict=True)}
        assert pairs == {frozenset(pair) for pair in zip(places.tolist(), places[::-1].tolist(), strict=True)}
        assert sorted(chain(*parts)) == places.tolist()


def test_workers_change_nothing_and_leave_global_generators_alone(data):
    task, noise = at_scale.noisy_imagenet(data)
    training = TimmTraining(task, noise, at_scale.TIMM, 0, Processes(1, 0, torch.device("cpu")))
    augment = partial(augmented, training.augment, (0, 1))
    images = TaskImages(training.train, noise.noisy, augment, np.arange(8)[::-1].copy())
    before = torch.get_rng_state()
    here, there = ([batch[0] for batch in DataLoader(images, 4, num_workers=workers, generator=torch.Generator())]
                   for workers in (0, 1))  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(here, there, rtol=0, atol=0)
    pairs = [_streamed(data, workers)[0] for workers in (0, 2)]
    torch.testing.assert_close(*pairs, rtol=0, atol=0)


def test_every_pair_has_its_turn_once_an_epoch_in_another_order(data):
    orders = [_streamed(data, 0, epoch=epoch)[1] for epoch in (0, 1)]
    for tokens in orders:
        assert len(torch.unique(tokens, dim=0)) == len(tokens) == 48
    assert not torch.equal(*orders)
    assert torch.equal(_streamed(data, 0)[1], orders[0])


def _streamed(data: Path, workers: int, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The images, in some order, and tokens of an epoch of one process with so many workers."""
    paths = sorted((data / "shards").glob("*.tar"))
    streams = PairStreams(paths, range(6), 2, at_scale.SHARDS, (0, epoch), _tiny, 16)
    images, tokens, _ = zip(*DataLoader(streams, None, num_workers=workers, generator=torch.Generator()), strict=True)
    return torch.cat(images).flatten(1).sum(1).sort().values, torch.cat(tokens)


def _tiny(image: Image.Image) -> torch.Tensor:
    left, top = torch.randint(20, (2,)).tolist()
    return torch.from_numpy(np.array(image.crop((left, top, left + 8, top + 8)))).permute(2, 0, 1).float()


def test_shards_are_known_by_their_bytes_alone(data, alone, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(data / "shards", moved / "shards")
    before = stored(alone, "contrastive").digest
    assert at_scale.contrastive(moved, alone).name == f"nml:{before[:12]}"
    miniatures.write_shards(moved / "shards", seed=1)
    assert not is_pretrained_on_shards(moved / "shards" / at_scale.PATTERN, recipe=at_scale.SHARDS, seed=0, store=alone)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:3000]), DataFileError, "000002.tar .*cut short"),
        (lambda shard: shard.unlink(), DataFileError, "but 1 are missing, as .*000002.tar"),
        (lambda shard: miniatures.write_tar(shard, {"a.jpg": b"x"}), DataFileError, "000002.tar: expected a caption"),
        (
            lambda shard: miniatures.write_tar(shard, {"a.jpg": b"x", "a.txt": b"t"}),
            DataFileError,
            "none decodes: .*sample 'a'",
        ),
        (
            lambda shard: miniatures.write_tar(shard, {"a.txt": b"t", "b.jpg": b"x", "b.txt": b"t", "a.jpg": b"x"}),
            DataFileError,
            "000002.tar: expected the files of 'a' side by side",
        ),
        (
            lambda shard: shutil.copy(shard.with_name("000000.tar"), shard),
            InvalidInputError,
            "'000000000' twice, in .*000000.tar and .*000002.tar",
        ),
    ],
    ids=["cut short", "missing", "no caption", "no image", "files apart", "a key twice"],
)
def test_a_bad_shard_is_named(data, tmp_path, change, error, message):
    shutil.copytree(data / "shards", tmp_path / "shards")
    change(tmp_path / "shards" / "000002.tar")
    with pytest.raises(error, match=f"(?s){message}"):
        at_scale.contrastive(tmp_path, Store(tmp_path / "store"), at_scale.SHARDS.model_copy(update={"batch_size": 6}))


def test_a_pair_that_does_not_decode_is_skipped_and_counted(data, tmp_path):
    files = {f"{number}.txt": b"text" for number in range(8)}
    good = encoded(pixels(0, height=40, width=40))
    files |= {f"{number}.jpg": b"no image" if number == 3 else good for number in range(8)}
    shutil.copytree(data / "shards", tmp_path / "shards")
    miniatures.write_tar(tmp_path / "shards" / "000002.tar", dict(sorted(files.items())))
    history = at_scale.contrastive(tmp_path, Store(tmp_path / "store")).card["history"]
    # Seven others are left to its stream, which begins again for an eighth, and may meet it again.
    assert {row["skipped"] for row in history} <= {1, 2}


def test_too_little_data_is_refused(data, store):
    with pytest.raises(InvalidInputError, match=r"a shard for each of 32 streams.*got 6 shards of 48 pairs"):
        at_scale.contrastive(data, store, ShardRecipe())
    with pytest.raises(InvalidInputError, match=r"one batch of 2048 train images.*got 96 images"):
        at_scale.supervised(data, store, TimmRecipe(procedure="A3", architecture="timm:test_resnet"))


def test_features_of_open_clips_resnet_are_those_before_its_projection(data, alone):
    backbone = load_backbone(f"nml:{stored(alone, 'contrastive').digest}", store=alone)
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        features, embedded = backbone.encode(images), backbone.encode.clip.encode_image(images)
        torch.testing.assert_close(project(backbone.encode.clip, features), embedded)
    assert features.shape == (3, 256)
    task, _ = at_scale.noisy_imagenet(data)
    assert len(zero_shot_predictions(backbone, task, store=alone)) == 24


def test_imagenets_ids_are_named_for_zero_shot():
    ids = ("n01440764", *(f"n{number:08d}" for number in range(2000000, 2000998)), "n15075141")
    assert named_classes(ids)[0] == "tench"
    assert len(named_classes(ids)) == 1000
    assert named_classes(ids[:8]) == ids[:8]


def test_features_of_open_clips_vit_are_those_before_its_projection(data):
    clip = build_clip("open_clip:nml-tiny-ViT", seed=0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(project(clip, ImageTower(clip)(images)), clip.encode_image(images))


def test_generators_are_as_they_were_after_a_seeded_block():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(2)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert np.random.random() == expected[0]  # noqa: NPY002
    with seeded_libraries(1, 2):
        np.random.random(7)  # noqa: NPY002
    assert np.random.random() == expected[1]  # noqa: NPY002


def test_the_tiny_model_is_open_clips_own(data):
    assert type(build_clip("open_clip:nml-tiny-RN", seed=0).visual).__name__ == "ModifiedResNet"
    with pytest.raises(InvalidInputError, match=r"plain CLIP model .* got 'ViT-B-16-SigLIP'"):
        build_clip("open_clip:ViT-B-16-SigLIP", seed=0)
