"""Tables and arrays as tasks: columns that are there, those that are not, and what stands for them."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nml_kit.data import load_task, task_from_arrays
from nml_kit.errors import DataFileError, InvalidInputError
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
        ({"text": ["a"], "label": [-1]}, "labels -1 to -1, not 0 to K-1"),
    ],
)
def test_what_a_table_lacks_is_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataFileError, match=message):
        load_task(tmp_path / "t.parquet")


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
