"""Tables, shards and split files that others wrote, whole, broken and hostile: read, or refused by our errors."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from nml_kit.data import load_task
from tests.faults.test_fuzz import HOSTILE_TEXTS, as_bytes, columns, damage, fuzz, mutated, outside, tried  # noqa: F401
from tests.pictures import encoded, pixels

texts = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=5)


def looked_at(task):
    if task is not None:
        assert task.labels.dtype == np.int64
        assert set(task.labels.tolist()) <= set(range(len(task.class_names)))
        assert all(isinstance(caption, str) for caption in task.captions.tolist())
        tried(lambda: task.inputs(slice(None)))
        tried(lambda: task.fingerprint)


@fuzz
@given(data=st.data())
def test_parquet_of_anyone(outside, data):  # noqa: F811 (the fixture)
    names = ["image", "text", "label", "split", "domain", "id", "caption"]
    good = {"label": pa.array([0, 1]), data.draw(st.sampled_from(["image", "text"])): pa.array(["a", "b"])}
    table = pa.table(good | data.draw(st.dictionaries(st.sampled_from(names), columns, max_size=3)))
    notes = json.dumps({"info": {"features": {"label": {"names": ["x", "y"]}}}})
    notes = data.draw(st.sampled_from([notes, "{}", "[]", notes[:30], notes.replace("[", "3, [")]))
    pq.write_table(table.replace_schema_metadata({b"huggingface": notes}), outside / "t.parquet")
    damage(data, outside / "t.parquet")
    looked_at(tried(lambda: load_task(outside / "t.parquet")))


@fuzz
@given(data=st.data(), kind=st.sampled_from(["csv", "tsv"]))
def test_delimited_tables(outside, data, kind):  # noqa: F811
    mark = b"," if kind == "csv" else b"\t"
    rows = (b"text", b"label", b"id", b"split"), (b"a", b"0", b"x", b"train"), (b'"b; c"', b"1", b"y", b"test")
    content = bytearray(b"".join(mark.join(row) + b"\n" for row in rows))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    (outside / f"t.{kind}").write_bytes(content)
    looked_at(tried(lambda: load_task(outside / f"t.{kind}")))


@fuzz
@given(data=st.data())
def test_shards(outside, data):  # noqa: F811
    notes = b'{"label": 1, "caption": "x"}'
    members = [("a.png", encoded(pixels(0))), ("a.json", notes), ("b.png", encoded(pixels(1))), ("b.json", notes)]
    with tarfile.open(outside / "s.tar", "w") as tar:
        for name, content in members:
            if name.endswith("json") and data.draw(st.booleans()):
                content = as_bytes(data.draw, data.draw(mutated(json.loads(content))))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = bytearray((outside / "s.tar").read_bytes())
    place = data.draw(st.integers(0, 6000))
    how = data.draw(st.sampled_from(["none", "byte", "cut"]))
    if how == "byte":
        content[place] ^= data.draw(st.integers(1, 255))
    (outside / "s.tar").write_bytes(content[:place] if how == "cut" else content)
    looked_at(tried(lambda: load_task(outside / "s.tar")))


@fuzz
@given(lines=st.lists(st.tuples(texts, texts), max_size=3), domain=st.sampled_from(["real", "a b", "é"]))
def test_split_files_of_domains(outside, lines, domain):  # noqa: F811
    for split in ("train", "test"):
        listed = [f"{domain}/c/{split}.png 0", *(f"{domain}/{a}/{b} {a}" for a, b in lines)]
        path = outside / f"{domain}_{split}.txt"
        path.write_bytes("\n".join(listed).encode("utf-8", "surrogatepass"))
    looked_at(tried(lambda: load_task(outside)))
    for path in outside.glob("*.txt"):
        path.unlink()
