"""Hugging Face data sets, saved to disk or as data files: columns, splits, hidden labels and pairs of sentences."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from nml_kit.data import load_task
from nml_kit.data.catalogue import is_cached
from nml_kit.data.tables import PAIR_SEPARATOR, read_hub
from nml_kit.errors import DataFileError, InvalidInputError
from tests.pictures import encoded, pixels


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No test waits for the hub, or writes into the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def pictures(numbers) -> Dataset:
    features = Features({"picture": Image(), "kind": ClassLabel(names=["dog", "cat"])})
    rows = {"picture": [{"bytes": encoded(pixels(n)), "path": None} for n in numbers], "kind": [n % 2 for n in numbers]}
    return Dataset.from_dict(rows, features=features)


ENTAILED = ("not_entailment", "entailment")


def sentences(first, second, labels, *, columns=("sentence1", "sentence2"), names=ENTAILED) -> Dataset:
    kinds = {name: Value("string") for name in columns}
    features = Features(kinds | {"label": ClassLabel(names=list(names)), "idx": Value("int32")})
    rows = {columns[0]: first, columns[1]: second, "label": labels, "idx": list(range(len(first)))}
    return Dataset.from_dict(rows, features=features)


def test_images_saved_to_disk_stay_there(tmp_path):
    DatasetDict(train=pictures(range(4)), test=pictures([7, 8])).save_to_disk(tmp_path / "set")
    task = load_task(tmp_path / "set")
    np.testing.assert_array_equal(task.images, np.stack([pixels(n) for n in (0, 1, 2, 3, 7, 8)]))
    assert task.class_names == ("dog", "cat")
    assert task.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert task.splits.tolist() == ["train"] * 4 + ["test"] * 2
    assert task.ids.tolist()[-1] == "test/000000001"
    np.testing.assert_array_equal(task.inputs(np.array([5, 0])), np.stack([pixels(8), pixels(0)]))
    assert not isinstance(task.image_data, np.ndarray)
    DatasetDict(train=pictures(range(4)), test=pictures([7, 8])).save_to_disk(tmp_path / "again")
    assert load_task(tmp_path / "again").fingerprint == task.fingerprint


def test_one_part_without_splits_gets_a_quarter_for_test(tmp_path):
    pictures(range(8)).save_to_disk(tmp_path / "set")
    task = load_task(tmp_path / "set")
    assert np.bincount(task.labels[task.splits == "test"]).tolist() == [1, 1]


def test_pairs_as_in_glue_whose_test_labels_are_hidden(tmp_path):
    train = sentences(["It rains.", "It snows."], ["It is wet.", "It is hot."], [1, 0])
    validation = sentences(["A"], ["B"], [1])
    hidden = sentences(["C", "D"], ["E", "F"], [-1, -1])
    DatasetDict(train=train, validation=validation, test=hidden).save_to_disk(tmp_path / "glue" / "rte")
    task = load_task(tmp_path / "glue" / "rte")
    assert task.inputs(slice(0, 2)).tolist() == [f"It rains.{PAIR_SEPARATOR}It is wet.", "It snows.\nIt is hot."]
    assert task.splits.tolist() == ["train", "train", "test"]
    named = load_task("glue:rte", root=tmp_path)
    assert named.class_names == ("entailment", "not_entailment")
    assert named.fingerprint == task.fingerprint
    assert task.class_names == ("not_entailment", "entailment")  # what was written had another order
    assert task.labels.tolist() == [1, 0, 1]
    assert named.labels.tolist() == [0, 1, 0]
    with pytest.raises(DataFileError, match="expected the classes x, y, z, got not_entailment, entailment"):
        read_hub(tmp_path / "glue" / "rte", class_names=("x", "y", "z"))


def test_matched_and_mismatched_parts_have_names_of_their_own(tmp_path):
    columns = ("premise", "hypothesis")
    mnli = partial(sentences, columns=columns, names=("entailment", "neutral", "contradiction"))
    parts = {
        "train": mnli(["a", "b"], ["c", "d"], [1, 2]),
        "validation_matched": mnli(["e"], ["f"], [0]),
        "validation_mismatched": mnli(["g"], ["h"], [1]),
        "test_matched": mnli(["i"], ["j"], [-1]),
    }
    DatasetDict(parts).save_to_disk(tmp_path / "glue" / "mnli")
    DatasetDict(parts).save_to_disk(tmp_path / "glue" / "mnli-mismatched")
    matched, mismatched = (load_task(name, root=tmp_path) for name in ("glue:mnli", "glue:mnli-mismatched"))
    assert matched.captions[matched.splits == "test"].tolist() == ["e\nf"]
    assert mismatched.captions.tolist() == ["g\nh"]
    both = load_task("glue:mnli+glue:mnli-mismatched", root=tmp_path)
    assert both.select(split="test").domains.tolist() == ["glue:mnli", "glue:mnli-mismatched"]
    everything = read_hub(tmp_path / "glue" / "mnli")
    assert everything.splits.tolist() == ["train", "train", "test", "test"]


def test_a_directory_of_data_files(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.csv").write_text("review,label\ngood,1\nbad,0\n")
    (tmp_path / "files" / "test.csv").write_text("review,label\nfine,1\n")
    task = load_task(f"hf:{tmp_path / 'files'}")
    assert task.inputs(slice(None)).tolist() == ["good", "bad", "fine"]
    assert task.splits.tolist() == ["train", "train", "test"]
    assert task.class_names == ("0", "1")


def test_columns_that_are_not_clear_are_asked_for(tmp_path):
    rows = Dataset.from_dict({"a": ["x"], "b": ["y"], "c": ["z"], "label": [0]})
    rows.save_to_disk(tmp_path / "texts")
    with pytest.raises(InvalidInputError, match=r"one or two of texts, got a, b, c, label; name them: read_hub"):
        load_task(tmp_path / "texts")
    assert read_hub(tmp_path / "texts", inputs=["c"]).captions.tolist() == ["z"]
    two = Features({"text": Value("string"), "fine": ClassLabel(names=["p"]), "coarse": ClassLabel(names=["q", "r"])})
    Dataset.from_dict({"text": ["x"], "fine": [0], "coarse": [1]}, features=two).save_to_disk(tmp_path / "labels")
    with pytest.raises(InvalidInputError, match="Expected one column of labels, got text, fine, coarse"):
        load_task(tmp_path / "labels")
    assert read_hub(tmp_path / "labels", label="coarse").class_names == ("q", "r")


def test_scores_a_missing_split_and_an_image_that_does_not_decode_are_named(tmp_path):
    Dataset.from_dict({"text": ["a", "b"], "label": [0.5, 2.5]}).save_to_disk(tmp_path / "stsb")
    with pytest.raises(DataFileError, match="labels of dtype float64"):
        load_task(tmp_path / "stsb")
    DatasetDict(train=sentences(["a"], ["b"], [1])).save_to_disk(tmp_path / "glue" / "rte")
    with pytest.raises(DataFileError, match="expected labelled rows in split 'validation', got splits train"):
        load_task("glue:rte", root=tmp_path)
    broken = (
        pictures([0])
        .cast_column("picture", Image(decode=False))
        .map(lambda _: {"picture": {"bytes": b"no", "path": None}})
    )
    broken.cast_column("picture", Image()).save_to_disk(tmp_path / "broken")
    with pytest.raises(DataFileError, match=r"sample 'all/000000000' \(.*row 0\) does not decode"):
        _ = load_task(tmp_path / "broken").images


def test_a_hub_that_cannot_be_reached_and_a_name_that_is_none(tmp_path):
    with pytest.raises(DataFileError, match=r"Expected data set nyu-mll/glue in the hub \(is it reachable"):
        load_task("glue:sst2", root=tmp_path)
    with pytest.raises(DataFileError, match="Expected data set nobody/nothing in the hub"):
        load_task("hf:nobody/nothing/config")


def test_the_cache_is_looked_for_where_datasets_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    asked = [sys.executable, "-c", "from datasets import config; print(config.HF_DATASETS_CACHE)"]
    cache = subprocess.run(asked, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout.strip()
    assert not is_cached("nyu-mll/glue", "sst2")
    Path(f"{cache}/nyu-mll___glue/sst2").mkdir(parents=True)
    assert is_cached("nyu-mll/glue", "sst2")
    assert not is_cached("nyu-mll/glue", "rte")
