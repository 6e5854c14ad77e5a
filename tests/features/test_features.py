import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from nml_kit.backbones import ImageTransform, load_backbone
from nml_kit.backbones.transforms import LibraryTransform
from nml_kit.data import load_task
from nml_kit.errors import CorruptEntryError, DataFileError, InvalidInputError, UnknownNameError
from nml_kit.features import Features, extract_features
from tests.pictures import write_class_folders, write_picture


@pytest.fixture
def backbone():
    return load_backbone("compact-resnet", seed=0)


def extract(task, backbone, store, **options):
    return extract_features(task, backbone, store=store, progress=False, **options)


def test_rows_are_the_network_outputs_of_their_ids(task, backbone, store):
    features = extract(task, backbone, store)
    with torch.no_grad():
        one_by_one = torch.cat([backbone.encode(backbone.transform(torch.from_numpy(task.images[i : i + 1])))
                                for i in range(len(task))])  # fmt: skip
    np.testing.assert_allclose(features.values, one_by_one.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(features.ids, task.ids)


@pytest.mark.parametrize(("shard", "batch"), [(7, 3), (10, 10), (1000, 1)])
def test_result_does_not_depend_on_batch_or_shard_size(task, backbone, tmp_path, monkeypatch, shard, batch):
    from nml_kit.features import features as module
    from nml_kit.store import Store

    expected = extract(task, backbone, Store(tmp_path / "a")).values
    monkeypatch.setattr(module, "SHARD_ROWS", shard)
    monkeypatch.setattr(module, "BATCH_ROWS", batch)
    np.testing.assert_allclose(extract(task, backbone, Store(tmp_path / "b")).values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heights", [[900] * 12, [900, 901] * 6], ids=["one size", "several"])
@pytest.mark.parametrize("library", [False, True])
def test_photos_are_made_small_one_by_one_to_the_same_bytes(tmp_path, store, heights, library):
    for number, height in enumerate(heights):
        write_picture(tmp_path / "set" / "ab"[number % 2] / f"{number}.png", number, height=height, width=1000)
    transform = ImageTransform(resize=40, crop=32)
    if library:
        small = Compose([Resize(40), CenterCrop(32), ToTensor()])
        transform = LibraryTransform(small, {"size": 32})
    network = dataclasses.replace(load_backbone("compact-resnet:8"), transform=transform)
    task = load_task(tmp_path / "set")
    expected = network(task.inputs(slice(None))).numpy()
    tracemalloc.start()
    values = extract(task, network, store).values
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(values, expected)
    assert peak < 5 * 900 * 1000 * 3  # of twelve photos; torch's own memory is not in it


def test_extracted_once_and_never_stale(task, backbone, store):
    calls = []

    def counting(images):
        calls.append(len(images))
        return images.reshape(len(images), -1)[:, :5].astype(np.float32)

    first = extract(task, load_backbone(counting, fingerprint_of_weights="v1"), store)
    again = extract(task, load_backbone(counting, fingerprint_of_weights="v1"), store)
    assert sum(calls) == len(task)
    np.testing.assert_array_equal(first.values, again.values)
    extract(task, load_backbone(counting, fingerprint_of_weights="v2"), store)
    assert sum(calls) == 2 * len(task)


@pytest.mark.parametrize(("first", "second"), [(nn.ReLU(), nn.Tanh()), (nn.AvgPool2d(30), nn.MaxPool2d(30))])
def test_two_networks_of_equal_weights_have_their_own_features(task, store, first, second):
    networks = []
    for last in (first, second):
        torch.manual_seed(0)
        networks.append(nn.Sequential(nn.Conv2d(3, 4, 3), last, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval())
    for network in networks:
        backbone = load_backbone(network, transform=ImageTransform())
        with torch.no_grad():
            expected = network(backbone.transform(torch.from_numpy(task.images)))
        np.testing.assert_allclose(extract(task, backbone, store).values, expected.numpy(), atol=1e-5)


def test_a_network_that_cannot_be_told_needs_a_fingerprint(task, store):
    network = nn.Flatten().eval()
    network.source = iter([1])
    with pytest.raises(InvalidInputError, match=r"Backbone 'Flatten': what it computes.*pass `fingerprint_of_weights`"):
        load_backbone(network)
    load_backbone(network, fingerprint_of_weights="mine")


def test_files_that_change_are_neither_served_from_memory_nor_stored(tmp_path, backbone, store):
    write_class_folders(tmp_path / "pictures", ["cat", "dog"], ("train", "test"), each=4)
    task = load_task(tmp_path / "pictures")
    extract(task, backbone, store)
    [picture, *_] = sorted((tmp_path / "pictures").rglob("*.png"))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture)
    with pytest.raises(DataFileError, match="some have changed; load the task again"):
        extract(task, backbone, store)

    def rewriting(images):
        Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(picture)
        return np.ones((len(images), 5), np.float32)

    before = list(store.entries())
    with pytest.raises(DataFileError, match="some have changed; load the task again"):
        extract(load_task(tmp_path / "pictures"), load_backbone(rewriting, fingerprint_of_weights="v1"), store)
    assert list(store.entries()) == before


def test_key_sees_weights_transform_dtype_and_pixels(task, backbone, store):
    pixels = task.images.copy()
    pixels[0, 0, 0, 0] ^= 1
    requests = [
        (task, backbone, "float32"),
        (task, load_backbone("compact-resnet", seed=1), "float32"),
        (task, load_backbone("compact-resnet", seed=0, transform=ImageTransform(mean=(0.4,) * 3)), "float32"),
        (task, backbone, "float16"),
        (dataclasses.replace(task, image_data=pixels), backbone, "float32"),
    ]
    digests = {extract(t, b, store, dtype=dtype).fingerprint for t, b, dtype in requests}
    assert len(digests) == len(requests)
    renamed = dataclasses.replace(task, name="other name", labels=task.labels[::-1].copy())
    assert extract(renamed, backbone, store).fingerprint in digests


def test_interrupted_extraction_goes_on_from_the_last_whole_shard(task, store, monkeypatch):
    from nml_kit.features import features as module

    monkeypatch.setattr(module, "SHARD_ROWS", 20)
    seen, broken = [], [True]

    def encode(images):
        if len(seen) == 3 and broken[0]:
            raise KeyboardInterrupt
        seen.append(images.copy())
        return images.reshape(len(images), -1)[:, :4].astype(np.float32)

    backbone = load_backbone(encode, fingerprint_of_weights="v1")
    with pytest.raises(KeyboardInterrupt):
        extract(task, backbone, store)
    broken[0] = False
    features = extract(task, backbone, store)
    np.testing.assert_array_equal(np.concatenate(seen), task.images)
    np.testing.assert_array_equal(features.values, task.images.reshape(len(task), -1)[:, :4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_name_the_sample(task, store, bad):
    def encode(images):
        out = np.ones((len(images), 2), dtype=np.float32)
        out[5] = bad
        return out

    with pytest.raises(InvalidInputError, match="got NaN or infinity for sample 'sample-0005' of 'quadrants'"):
        extract(task, load_backbone(encode, fingerprint_of_weights="v1"), store)


def test_float16_overflow_is_an_error_not_an_infinity(task, store):
    backbone = load_backbone(lambda images: np.full((len(images), 2), 1e6), fingerprint_of_weights="v1")
    with pytest.raises(InvalidInputError, match=r"NaN or infinity.*as float16"):
        extract(task, backbone, store, dtype="float16")


def test_flipped_byte_in_a_stored_entry_is_found(task, backbone, store):
    extract(task, backbone, store)
    (info,) = store.entries("features")
    path = info.path / "features.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(CorruptEntryError, match=r"features\.safetensors.*nml store prune"):
        extract(task, backbone, store)


def test_select_and_its_errors(task, backbone, store):
    features = extract(task, backbone, store)
    part = features.select(split="test", domains=("dark",))
    assert set(part.splits) == {"test"}
    rows = [features.ids.tolist().index(name) for name in part.ids]
    np.testing.assert_array_equal(part.values, features.values[rows])
    with pytest.raises(UnknownNameError, match="Unknown domain 'drk': did you mean 'dark'"):
        features.select(domains=("drk",))


def test_missing_or_repeated_ids_are_refused():
    columns = {"task": "t", "values": np.ones((2, 3)), "labels": np.array([0, 1]), "class_names": ("a", "b"),
               "domains": np.array(["d", "d"]), "splits": np.array(["train", "test"]), "fingerprint": "x"}  # fmt: skip
    with pytest.raises(InvalidInputError, match="got 2 rows for 1 ids"):
        Features(ids=np.array(["a"]), **columns)
    with pytest.raises(InvalidInputError, match="expected unique ids, but got 'a' 2 times"):
        Features(ids=np.array(["a", "a"]), **columns)
