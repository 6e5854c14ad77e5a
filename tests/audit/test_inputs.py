"""Features from arrays and files: what goes in comes out, and what cannot be meant is refused."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from nml_kit.audit import features_from_files
from nml_kit.audit.inputs import features_from_arrays, read_array
from nml_kit.errors import DataFileError, InvalidInputError


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    return generator.standard_normal((40, 6)).astype(np.float16), np.array(["cat", "dog", "owl", "cat"] * 10)


def test_every_kind_of_file_gives_the_same_array(data, tmp_path):
    X, y = data
    np.save(tmp_path / "X.npy", X)
    save_file({"features": X}, tmp_path / "X.safetensors")
    pd.DataFrame(X.astype(np.float32), columns=list("abcdef")).to_parquet(tmp_path / "X.parquet")
    pd.DataFrame({"label": y}).to_parquet(tmp_path / "y.parquet")
    for kind in ("npy", "safetensors", "parquet"):
        np.testing.assert_array_equal(read_array(tmp_path / f"X.{kind}"), X)
    assert read_array(tmp_path / "y.parquet").tolist() == y.tolist()


def test_arrays_keep_their_rows_and_a_test_part_is_set_apart_by_class(data):
    X, y = data
    features = features_from_arrays(X, y)
    np.testing.assert_array_equal(features.values, X)
    assert features.values.dtype == np.float16
    assert [features.class_names[label] for label in features.labels] == y.tolist()
    test = features.splits == "test"
    assert test.sum() == 10
    assert {name: int((test & (y == name)).sum()) for name in ("dog", "owl")} in (
        {"dog": 3, "owl": 2},
        {"dog": 2, "owl": 3},
    )
    assert (features_from_arrays(X, y).splits == features.splits).all()


def test_test_samples_and_domains_are_those_that_were_given(data, tmp_path):
    X, y = data
    at = np.array(["left", "right"] * 20)
    names = {"X": X[:30], "y": y[:30], "X_test": X[30:], "y_test": y[30:], "at": at[:30], "at_test": at[30:]}
    paths = {name: tmp_path / f"{name}.npy" for name in names}
    for name, array in names.items():
        np.save(paths[name], array)
    files = [paths[name] for name in ("X", "y", "X_test", "y_test")]
    features = features_from_files(*files, domains=paths["at"], test_domains=paths["at_test"])
    assert features.splits.tolist() == ["train"] * 30 + ["test"] * 10
    assert features.domains.tolist() == at.tolist()
    assert features.task == "X"


def test_the_fingerprint_is_that_of_the_content(data, tmp_path):
    X, y = data
    first = features_from_arrays(X, y).fingerprint
    np.save(tmp_path / "moved.npy", X)
    assert features_from_arrays(read_array(tmp_path / "moved.npy"), y).fingerprint == first
    changed = X.copy()
    changed[3, 2] += 1
    assert features_from_arrays(changed, y).fingerprint != first
    assert features_from_arrays(X, np.roll(y, 1)).fingerprint != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros(40)}, r"matrix of numbers \(N, D\)"),
        ({"X": np.where(np.arange(240).reshape(40, 6) == 45, np.nan, 1)}, "train features without NaN.*in row 7; fill"),
        ({"y": pd.Series(["cat", "dog", None, "cat"] * 10)}, "train labels without gaps, got .* in row 2; fill"),
        ({"domains": pd.Series(["a", "b", "b", np.nan] * 10)}, "train domains without gaps, got nan in row 3; fill"),
        ({"X": np.full((40, 6), "a")}, "matrix of numbers"),
        ({"y": np.zeros(39, int)}, "one of train labels for each of 40 rows"),
        ({"y": np.zeros(40, int)}, "at least two classes"),
        ({"domains": ["a"]}, "one of train domains for each"),
        ({"X_test": np.zeros((2, 5)), "y_test": ["cat", "dog"]}, r"of one width, got \[5, 6\]"),
        ({"X_test": np.zeros((2, 6)), "y_test": ["cat", "cow"]}, "test labels such as .*cow.* without any"),
        ({"X_test": np.zeros((2, 6))}, "one of test labels for each of 2 rows"),
        ({"y": np.arange(40)}, "two samples of every class to set a test part apart"),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused(data, change, message):
    with pytest.raises(InvalidInputError, match=message):
        features_from_arrays(**{"X": data[0], "y": data[1]} | change)


def test_a_pandas_index_is_no_feature(data, tmp_path):
    X, y = data
    frame = pd.DataFrame(X.astype(np.float32), columns=list("abcdef"), index=pd.RangeIndex(40, name="sample"))
    order = np.random.default_rng(1).permutation(40)
    frame.iloc[order].to_parquet(tmp_path / "X.parquet")
    frame.rename_axis(None).iloc[order].to_parquet(tmp_path / "unnamed.parquet")
    frame.assign(y=y).set_index("y", append=True)[["a"]].to_parquet(tmp_path / "two.parquet")
    for name in ("X", "unnamed"):
        np.testing.assert_array_equal(read_array(tmp_path / f"{name}.parquet"), X[order])
    np.testing.assert_array_equal(read_array(tmp_path / "two.parquet"), X[:, 0])


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 6), pa.large_list(pa.float32())])
def test_a_column_of_lists_is_a_matrix(data, kind, tmp_path):
    X = data[0].astype(np.float32)
    pq.write_table(pa.table({"embedding": pa.array(X.tolist(), kind)}), tmp_path / "X.parquet", row_group_size=7)
    found = read_array(tmp_path / "X.parquet")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X)


def test_a_gap_or_a_list_of_another_length_is_named(tmp_path):
    columns = {"label": ["cat", "dog", None], "embedding": [[1.0], None, [2.0]], "ragged": [[1.0], [1.0, 2.0], [3.0]]}
    messages = ("no value in row 2 of column 'label'", "no value in row 1 of column 'embedding'", "same shape")
    for (name, values), message in zip(columns.items(), messages, strict=True):
        pq.write_table(pa.table({name: values}), tmp_path / "one.parquet")
        with pytest.raises(DataFileError, match=message):
            read_array(tmp_path / "one.parquet")


@pytest.mark.parametrize("values", [["cat", "dog", "owl", "cat"], [3, 7, 9, 3], [True, False, True, True]])
def test_labels_of_objects_are_as_those_of_a_dtype(data, values):
    plain, objects = np.array(values * 10), pd.Series(values * 10, dtype=object)
    expected = features_from_arrays(data[0], plain, data[0], plain)
    found = features_from_arrays(data[0], objects, data[0], plain)
    assert found.class_names == expected.class_names
    assert found.fingerprint == expected.fingerprint


def test_files_that_hold_something_else_are_explained(data, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    save_file({"a": data[0], "b": data[0]}, tmp_path / "two.safetensors")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "empty.npy").touch()
    for name in ("objects.npy", "empty.npy", "two.safetensors", "cut.npy"):
        with pytest.raises(DataFileError):
            read_array(tmp_path / name)
    for kind in ("npy", "parquet", "safetensors"):
        with pytest.raises(DataFileError, match="got no such file; check the path"):
            read_array(tmp_path / f"none.{kind}")
    with pytest.raises(InvalidInputError, match=r"ends in \.npy"):
        read_array(tmp_path / "X.pkl")
    with pytest.raises(InvalidInputError, match="or neither, got one of the two"):
        features_from_files("X.npy", "y.npy", "test.npy")
