"""Tables and arrays as tasks: columns that are there, those that are not, and what stands for them."""

import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from nml_kit.data import load_task, task_from_arrays
from nml_kit.data.catalogue import is_cached
from nml_kit.data.tables import PAIR_SEPARATOR, read_hub
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.noise import inject_label_noise
from tests.pictures import encoded, pixels, write_picture


def write_csv(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def test_a_csv_of_image_paths_beside_it(tmp_path):
    expected = np.stack([write_picture(tmp_path / "images" / f"{n}.png", n) for n in range(4)])
    rows = [(f"images/{n}.png", ["dog", "cat"][n % 2], ["train", "test"][n // 2], "here", f"00{n}") for n in range(4)]
    write_csv(tmp_path / "mine.csv", [("image", "label", "split", "domain", "id"), *rows])
    task = load_task(tmp_path / "mine.csv")
    np.testing.assert_array_equal(task.images, expected)
    assert task.ids.tolist() == ["000", "001", "002", "003"]
    assert task.class_names == ("cat", "dog")
    assert task.labels.tolist() == [1, 0, 1, 0]
    assert task.splits.tolist() == ["train", "train", "test", "test"]
    assert task.domains.tolist() == ["here"] * 4


def test_a_table_without_optional_columns(tmp_path):
    for n in range(8):
        write_picture(tmp_path / f"{n}.png", n)
    write_csv(tmp_path / "t.csv", [("label", "image"), *((n % 2, f"{n}.png") for n in range(8))])
    task = load_task(tmp_path / "t.csv")
    assert task.ids.tolist() == [f"{n}.png" for n in range(8)]
    assert task.class_names == ("0", "1")
    assert np.bincount(task.labels[task.splits == "test"]).tolist() == [1, 1]


def test_texts_in_csv_and_tsv(tmp_path):
    texts = ['He said "no", twice.', "two\tparts".replace("\t", " "), "naïve", "NA"]
    write_csv(tmp_path / "t.csv", [("text", "label"), *zip(texts, [1, 0, 1, 0], strict=True)])
    task = load_task(tmp_path / "t.csv")
    assert task.image_data is None
    assert task.inputs(slice(None)).tolist() == texts
    lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in zip(texts, "1010", strict=True))]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")  # as GLUE's: quotes are characters
    again = load_task(tmp_path / "t.tsv")
    assert again.inputs(slice(None)).tolist() == texts
    assert again.fingerprint == task.fingerprint


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet_with_images_of_each_kind(tmp_path, kind):
    pictures = [write_picture(tmp_path / f"{n}.png", n) for n in range(3)]
    values = {
        "bytes": [encoded(picture) for picture in pictures],
        "struct": [{"bytes": encoded(picture), "path": None} for picture in pictures],
        "path": [f"{n}.png" for n in range(3)],
    }[kind]
    pq.write_table(pa.table({"image": values, "label": [0, 2, 1]}), tmp_path / "t.parquet")
    task = load_task(tmp_path / "t.parquet")
    np.testing.assert_array_equal(task.images, np.stack(pictures))
    assert task.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pixels": ["a"], "label": [0]}, r"but `image` or `text` is missing; rename one of pixels, label"),
        ({"text": ["a"], "target": [0]}, r"but `label` is missing; rename one of text, target"),
        ({"text": ["a", None], "label": [0, 1]}, "1 values that are missing"),
        ({"text": ["a"], "label": [-1]}, "labels -1 to -1, not from 0"),
        ({"text": ["a", "b"], "label": [0, None]}, "1 values that are missing, the first in row 2"),
        ({"text": ["a", "b", "c"], "label": ["x", " ", ""]}, r"an empty label in row 2 \(2 in all\); fill it in or"),
        ({"text": ["a", "b"], "label": [1.0, None]}, "labels of kind double; write them as whole numbers or texts"),
    ],
)
def test_what_a_table_lacks_is_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataFileError, match=message):
        load_task(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        (["1", "3", "2"], ("1", "2", "3"), [0, 2, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        (["12345678901234567891", "12345678901234567890", "7"],
         ("12345678901234567890", "12345678901234567891", "7"), [1, 0, 2]),
        (["007", "7", "07"], ("007", "07", "7"), [0, 2, 1]),
        (["x" * 70_000 + "b", "x" * 70_000 + "a", "y"], ("x" * 70_000 + "a", "x" * 70_000 + "b", "y"), [1, 0, 2]),
        (["NA", "true", " true"], ("NA", "true"), [0, 1, 1]),
    ],
    ids=["from 1", "in order of numbers", "more digits than a number has", "leading zeros", "long texts", "texts"],
)  # fmt: skip
def test_classes_are_the_labels_that_occur(tmp_path, labels, class_names, expected):
    write_csv(tmp_path / "t.csv", [("text", "label"), *zip("abc", labels, strict=True)])
    task = load_task(tmp_path / "t.csv")
    assert task.class_names == class_names
    assert task.labels.tolist() == expected


def test_noise_flips_to_no_class_that_does_not_occur(tmp_path):
    write_csv(tmp_path / "t.csv", [("text", "label"), *((n, n % 3 + 1) for n in range(300))])
    task = load_task(tmp_path / "t.csv")
    noise = inject_label_noise(task.labels, 0.9, num_classes=task.num_classes, seed=0)
    assert {task.class_names[label] for label in noise.noisy} == {"1", "2", "3"}


def test_an_empty_label_of_a_csv_is_named_by_its_row(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,cat\nb,\nc,dog\n")
    with pytest.raises(DataFileError, match=r"t\.csv: .*an empty label in row 2 \(1 in all\)"):
        load_task(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("text,label\na,1\nb,\nc,2\n")
    with pytest.raises(DataFileError, match=r"t\.csv: .*an empty label in row 2 \(1 in all\)"):
        load_task(tmp_path / "t.csv")


def test_a_table_that_is_none_and_splits_of_other_names(tmp_path):
    with pytest.raises(DataFileError, match=r"Expected a table .*none\.csv, got"):
        load_task(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_text("text,label\na,1\nb\n")
    with pytest.raises(DataFileError, match=r"Expected a table .*t\.csv, got"):
        load_task(tmp_path / "t.csv")
    (tmp_path / "s.csv").write_text("text,label,split\na,1,dev\nb,0,train\n")
    with pytest.raises(InvalidInputError, match="expected splits train and test, but got 'dev'"):
        load_task(tmp_path / "s.csv")


def test_arrays_and_tensors():
    images = np.stack([pixels(n) for n in range(8)])
    from_numpy = task_from_arrays(images, np.arange(8) % 2, class_names=("no", "yes"))
    from_torch = task_from_arrays(torch.from_numpy(images), torch.arange(8) % 2, splits=["train"] * 6 + ["test"] * 2)
    assert from_numpy.fingerprint == from_torch.fingerprint
    assert from_numpy.class_names == ("no", "yes")
    assert (from_numpy.splits == "test").sum() == 2
    np.testing.assert_array_equal(from_torch.select(split="test").images, images[6:])
    grey = task_from_arrays(images[..., 0], list("abababab"))
    np.testing.assert_array_equal(grey.images[..., 2], images[..., 0])
    ordered = task_from_arrays(["one", "two"], ["x", "y"], class_names=("y", "x", "z"))
    assert (ordered.class_names, ordered.labels.tolist()) == (("y", "x", "z"), [1, 0])
    texts = task_from_arrays(["one", "two"], ["x", "y"], domains=["p", "q"])
    assert texts.inputs(slice(None)).tolist() == ["one", "two"]


@pytest.mark.parametrize(
    ("inputs", "labels", "options", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), [0, 1], {}, "put the channels last"),
        (np.zeros((2, 8, 8, 3)), [0, 1], {}, "got float64"),
        (["a", "b"], [0.5, 1], {}, "labels of dtype float64"),
        (["a", "b"], [0, 1, 1], {}, "expected 2 labels, one per id, but got 3"),
        (["a", "b"], [0, 1], {"class_names": ("only",)}, r"expected labels in 0\.\.0, but got 0\.\.1"),
        (["a", "b"], [0, 1], {"ids": ["x", "x"]}, "expected unique ids"),
    ],
)
def test_arrays_of_other_kinds_are_refused(inputs, labels, options, message):
    with pytest.raises(InvalidInputError, match=message):
        task_from_arrays(inputs, labels, **options)


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
