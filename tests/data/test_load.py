import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml_kit.data import Task, load_task
from nml_kit.data.load import SHIPPED_TASKS
from nml_kit.errors import DataFileError, InvalidInputError, UnknownNameError


def write_parquet(path, *, drop=(), image_bytes=None):
    pixels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    columns = {
        "image": [{"bytes": image_bytes or buffer.getvalue(), "path": f"{name}.png"} for name in "ab"],
        "label": [0, 1],
        "caption": ["a", "b"],
        "domain": ["d", "d"],
        "source": ["s", "s"],
        "id": ["a", "b"],
        "split": ["train", "test"],
    }
    table = pa.table({name: values for name, values in columns.items() if name not in drop})
    pq.write_table(table.replace_schema_metadata({"class_names": json.dumps(["no", "yes"])}), path)
    return pixels


def test_parquet_round_trip_keeps_pixels_labels_and_names(tmp_path):
    pixels = write_parquet(tmp_path / "mine.parquet")
    task = load_task(str(tmp_path / "mine.parquet"))
    np.testing.assert_array_equal(task.images, np.stack([pixels, pixels]))
    assert task.labels.tolist() == [0, 1]
    assert task.class_names == ("no", "yes")
    assert task.name == "mine"


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown data set 'icon': did you mean 'icons'\?"):
        load_task("icon")


def test_missing_file_says_where_it_was_expected(tmp_path):
    with pytest.raises(DataFileError, match=r"Parquet file at .*digits\.parquet.*; restore it, or set NML_DATA"):
        load_task("digits", root=tmp_path)


def test_truncated_file_is_not_read(tmp_path):
    path = tmp_path / "cut.parquet"
    write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataFileError, match="Expected a whole Parquet file"):
        load_task(str(path))


def test_missing_column_is_named(tmp_path):
    write_parquet(tmp_path / "x.parquet", drop=["domain"])
    with pytest.raises(DataFileError, match="but `domain` is missing"):
        load_task(str(tmp_path / "x.parquet"))


def test_image_that_does_not_decode_names_the_sample(tmp_path):
    write_parquet(tmp_path / "x.parquet", image_bytes=b"not a picture")
    with pytest.raises(DataFileError, match="image of sample 'a' does not decode"):
        load_task(str(tmp_path / "x.parquet")).inputs(slice(0, 1))


def test_select_and_take_keep_rows_together(task):
    dark = task.select(split="train", domains=["dark"])
    assert set(dark.domains) == {"dark"}
    assert set(dark.splits) == {"train"}
    positions = [task.ids.tolist().index(name) for name in dark.ids]
    np.testing.assert_array_equal(dark.images, task.images[positions])
    np.testing.assert_array_equal(dark.labels, task.labels[positions])


def test_select_unknown_split_or_domain(task):
    with pytest.raises(UnknownNameError, match="Unknown split 'tset': did you mean 'test'"):
        task.select(split="tset")
    with pytest.raises(UnknownNameError, match="Unknown domain 'drak'"):
        task.select(domains=["drak"])


def test_limit_is_a_seeded_subset_that_keeps_the_test_split(task):
    small, again, other = (task.limit(classes=3, train_per_class=5, seed=seed) for seed in (0, 0, 1))
    train = small.select(split="train")
    assert np.bincount(train.labels).tolist() == [5, 5, 5]
    np.testing.assert_array_equal(small.ids, again.ids)
    assert set(small.ids) != set(other.ids)
    kept = task.take(task.labels < 3).select(split="test")
    np.testing.assert_array_equal(small.select(split="test").ids, kept.ids)


def test_limit_does_not_depend_on_file_order(task):
    shuffled = task.take(np.random.default_rng(0).permutation(len(task)))
    expected = set(task.limit(train_per_class=5, seed=3).ids)
    assert set(shuffled.limit(train_per_class=5, seed=3).ids) == expected


def test_fingerprint_sees_pixels_and_ids_but_not_labels(task):
    changed = task.images.copy()
    changed[0, 0, 0, 0] ^= 1
    columns = (task.labels, task.class_names, task.captions, task.domains, task.splits)
    other_pixels = Task("x", task.ids, *columns, changed)
    other_ids = Task("x", np.char.add(task.ids, "!"), *columns, task.images)
    other_labels = Task("x", task.ids, task.labels[::-1].copy(), *columns[1:], task.images)
    assert other_pixels.fingerprint != task.fingerprint
    assert other_ids.fingerprint != task.fingerprint
    assert other_labels.fingerprint == task.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0])}, "expected 2 labels, one per id, but got 1"),
        ({"labels": np.array([0, 2])}, r"expected labels in 0\.\.1, but got 0\.\.2"),
        ({"ids": np.array(["a", "a"])}, "expected unique ids, but got 'a' 2 times"),
    ],
)
def test_inconsistent_columns_are_refused(change, message):
    text = np.array(["p", "q"])
    columns = {"ids": np.array(["a", "b"]), "labels": np.array([0, 1]), "class_names": ("x", "y"),
               "captions": text, "domains": text, "splits": text}  # fmt: skip
    with pytest.raises(InvalidInputError, match=message):
        Task("t", **{**columns, **change})


@pytest.mark.parametrize("name", SHIPPED_TASKS)
def test_every_shipped_task_loads(name):
    task = load_task(name)
    assert len(task) > 500
    assert set(task.splits) == {"train", "test"}
    assert (task.image_data is None) == (name == "emoji-text")
    assert len(task.inputs(slice(0, 3))) == 3
