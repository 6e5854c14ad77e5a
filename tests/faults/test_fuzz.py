"""Files that others wrote, whole, broken and hostile: read rightly, or refused by an error of ours, in time."""

import json
import string

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML, YAMLError

from nml_kit.batch import RunStatus, current_status, plan_suite, read_statuses, summary_of_runs, write_plan
from nml_kit.data import REQUIRED_COLUMNS, load_task
from nml_kit.errors import NMLError
from nml_kit.store import Store, fingerprint, parse_yaml, read_yaml
from nml_kit.study import load_profile, profiles_dir
from tests.batch.test_results import summary_frame

fuzz = settings(
    deadline=10_000, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
HOSTILE_TEXTS = [
    "", ".", "..", "../../outside", "/etc/passwd", "a/../../outside", "C:\\x", "a\0b", "\ud800", "x" * 5000, "NaN", "é",
    "!!python/object/apply:os.system ['touch outside']", "&a [*a]", "<<", "<script>alert(1)</script>", "\x1b[2J",
]  # fmt: skip
HOSTILE_NUMBERS = [0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0, 0.5, float("inf"), float("nan")]
DEEP = json.loads("[" * 300 + "]" * 300)
scalars = (
    st.none() | st.booleans() | st.sampled_from(HOSTILE_NUMBERS) | st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=9)
)
plain = st.recursive(
    scalars | st.just(DEEP),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(HOSTILE_TEXTS), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """All places in nested dicts and lists."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def with_change(value, path, change):
    """A copy with the part at `path` changed; what `change` returns None for is left out."""
    if not path:
        return change(value)
    copy = value.copy()
    copy[path[0]] = with_change(value[path[0]], path[1:], change)
    return copy


@st.composite
def mutated(draw, whole):
    """A file's content with some parts replaced, renamed or removed."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(whole))))
        how = draw(st.sampled_from(["replace", "remove", "rename"]))
        if how == "replace" or not path or not isinstance(whole, dict):
            new = draw(plain)
            whole = with_change(whole, path, lambda _, new=new: new)
            continue
        key = draw(st.sampled_from(HOSTILE_TEXTS)) if how == "rename" else None

        def change(parent, name=path[-1], key=key):
            if isinstance(parent, list):
                return [part for number, part in enumerate(parent) if number != name]
            kept = {old: part for old, part in parent.items() if old != name}
            return kept if key is None else kept | {key: parent[name]}

        whole = with_change(whole, path[:-1], change)
    return whole


def as_bytes(draw, value) -> bytes:
    """JSON, sometimes cut, with one byte changed, or with a name twice."""
    content = bytearray(json.dumps(value).encode("utf-8", "surrogatepass"))
    damage = draw(st.sampled_from(["none", "none", "cut", "byte", "twice"]))
    place = draw(st.integers(0, len(content) - 1))
    if damage == "cut":
        del content[place:]
    elif damage == "byte":
        content[place] = draw(st.integers(0, 255))
    elif damage == "twice":
        content = content.replace(b"{", b'{"name": "x", "name": "y", ', 1)
    return bytes(content)


def listing(root):
    return sorted(str(path) for path in root.rglob("*"))


@pytest.fixture
def outside(tmp_path):
    """A directory with all that a reader may see inside it, and a look that nothing beside it changed."""
    inside = tmp_path / "a" / "inside"
    inside.mkdir(parents=True)
    (tmp_path / "outside").write_text("kept")
    before = [path for path in listing(tmp_path) if not path.startswith(str(inside))]
    yield inside
    assert [path for path in listing(tmp_path) if not path.startswith(str(inside))] == before
    assert (tmp_path / "outside").read_text() == "kept"


def tried(read):
    """What `read` returns, or None if it raises one of our errors; all others are failures."""
    try:
        return read()
    except NMLError:
        return None


def written(path, content):
    """Write content as YAML; False for what YAML cannot hold."""
    try:
        YAML(typ="safe").dump(content, path)
    except (RecursionError, ValueError, YAMLError):
        return False
    return True


SUITE = {
    "name": "s", "profile": "smoke",
    "notebooks": [{"notebook": "n.ipynb", "params": {"seed": 1}, "grid": {"rate": [0.1, 0.2]}, "stage": 1,
                   "resources": {"CPU": 1, "GPU": 0, "memory": "2 GB"}}],
}  # fmt: skip


@fuzz
@given(content=mutated(SUITE))
def test_suites(outside, content):
    path = outside / "s.yaml"
    if not written(path, content):
        return
    for run in tried(lambda: plan_suite(path, runs=outside / "runs")) or ():
        assert run.notebook.is_relative_to(outside)
        assert run.run_dir.resolve().is_relative_to(outside / "runs")


yaml_words = st.lists(
    st.sampled_from([
        *"\n :-[]{},&*!|>'\"%#?@`~\t\0", "a", "b: ", "- ", "\n  ", "<<: ", "*a ", "&a ", "!!int ", "!!float ",
        "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!python/name:os.system ",
        "!!python/object/apply:os.abort []",
        "0b_", "0x", "1:99", "2020-13-45", ".nan", "9" * 5000, "---\n", "...", "%YAML 9.9\n", "name: s\n", "stage: 1\n",
    ]),
    max_size=12,
).map("".join)  # fmt: skip


@settings(fuzz, max_examples=100)
@given(text=yaml_words | st.text(max_size=40) | st.text(string.printable, max_size=40))
def test_yaml_of_any_text(text):
    tried(lambda: parse_yaml(text, "a test"))


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "x: {stage: 1, stage: 2}",
        "a: &a [*a]",
        "!!python/object/apply:os.abort []",
        "!!python/name:os.system",
        "[" * 100_000,
        "x: " + "9" * 5000,
        "x: 2020-13-45",
        "x: !!bool maybe",
        "x: 0b_",
        "- x\n" * 500_000,
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.timeout(20)
def test_yaml_that_is_refused(text):
    with pytest.raises(NMLError, match="Expected YAML in a test, got: "):
        parse_yaml(text, "a test")


def test_yaml_may_use_anchors_and_merges():
    text = "common: &c {stage: 1, seed: 0}\none: {<<: *c, seed: 3}\ntwo: *c"
    assert parse_yaml(text, "")["one"] == {"stage": 1, "seed": 3}
    assert parse_yaml("", "") is None


PROFILE = read_yaml(profiles_dir() / "smoke.yaml")


@fuzz
@given(content=mutated(PROFILE))
def test_profiles(outside, content):
    path = outside / "p.yaml"
    if not written(path, content):
        return
    profile = tried(lambda: load_profile(str(path)))
    assert profile is None or all(0 <= ratio <= 1 for ratio in profile.ratios)


@pytest.mark.parametrize("name", [*HOSTILE_TEXTS, "../profiles/demo", "x" * 300 + ".yaml", "a\0.yaml", "/.yaml"])
def test_names_of_profiles(name):
    assert tried(lambda: load_profile(name)) is None


STATUS = RunStatus(
    name="r", notebook="n.ipynb", run_dir="r", state="done", id="i", source="s.yaml", params={"seed": 1}, seconds=1.5,
    started="2030-01-01T00:00:00+00:00", host="h", pid=1, files={"rows.parquet": 3, "sub/x": 1},
).record()  # fmt: skip


@fuzz
@given(data=st.data())
def test_statuses_and_plans(outside, data):
    (outside / "r").mkdir(exist_ok=True)
    (outside / "r" / "status.json").write_bytes(as_bytes(data.draw, data.draw(mutated(STATUS))))
    (outside / "plan.json").write_bytes(as_bytes(data.draw, data.draw(mutated({"runs": [STATUS, STATUS]}))))
    status = current_status(outside / "r")
    assert status.seconds is None or status.seconds >= 0
    assert not any(name.startswith(("/", "..")) for name in status.files)
    status.is_done("i")
    for one in tried(lambda: read_statuses(outside)) or ():
        assert one.run_dir.resolve().is_relative_to(outside)
        json.dumps(one.record())
    write_plan(outside, [RunStatus.model_validate(STATUS)])
    assert any(one.name == "r" for one in read_statuses(outside))


@pytest.mark.parametrize("name", [text for text in HOSTILE_TEXTS if text != "\ud800"])
def test_names_of_planned_runs(outside, name):
    (outside / "plan.json").write_text(json.dumps({"runs": [STATUS | {"name": name}]}))
    for one in tried(lambda: read_statuses(outside)) or ():
        assert one.run_dir.is_relative_to(outside)


def build(work):
    from nml_kit.store import write_tensors

    write_tensors(work / "entry" / "tensors.safetensors", {"x": np.arange(3)})
    return {"rows": 3}


@fuzz
@given(data=st.data())
def test_manifests(outside, data):
    """Also such as a program of ill will writes: with the checksum that belongs to the content."""
    store = Store(outside / "store")
    entry = store.get_or_build("features", {"a": 1}, build)
    path = entry.path / "manifest.json"
    whole = path.read_bytes()
    content = data.draw(mutated(entry.manifest))
    if isinstance(content, dict) and data.draw(st.booleans()):
        content = {name: part for name, part in content.items() if name != "checksum"}
        try:
            content["checksum"] = fingerprint(content)
        except (NMLError, RecursionError):
            content = {}
    path.write_bytes(as_bytes(data.draw, content))
    found = tried(lambda: store.find("features", {"a": 1}))
    if found is not None:
        tried(found.tensors)
        assert isinstance(found.card, dict)
    list(store.entries())
    for info in store.verify():
        assert "prune --corrupt" in info.problem
        assert store.prune() == [entry.path]
    if entry.path.exists():
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "pipe", "link to a file outside"])
def test_what_is_no_entry_is_told_and_pruned_and_nothing_it_points_to(outside, kind):
    import os

    store = Store(outside / "store")
    entry = store.get_or_build("features", {"a": 1}, build)
    foreign = outside / "foreign"
    foreign.mkdir()
    (foreign / "kept").touch()
    stray = entry.path.with_name("0" * 64)
    if kind == "link":
        stray.symlink_to(foreign)
    elif kind == "dangling link":
        stray.symlink_to(outside / "nowhere")
    elif kind == "file":
        stray.touch()
    else:
        stray = entry.path
        (stray / "tensors.safetensors").unlink()
        if kind == "pipe":
            os.mkfifo(stray / "tensors.safetensors")
        else:
            (stray / "tensors.safetensors").symlink_to(foreign / "kept")
    assert [info.path for info in store.verify()] == [stray]
    assert store.prune() == [stray]
    assert store.verify() == store.prune() == []
    assert (foreign / "kept").exists()


columns = st.sampled_from([
    pa.array([0, 1]), pa.array([0, 7]), pa.array([2**63, 1], pa.uint64()), pa.array([-1, 0]),
    pa.array([0.5, float("nan")]), pa.array(["a", "b"]), pa.array(["a", "a"]), pa.array(["a", None]),
    pa.array([None, None]), pa.array([b"\xff", b"x"]),
    pa.array([[1], []]), pa.array([{"bytes": b"x"}, {"bytes": None}]), pa.array([{"path": "x"}, None]),
    pa.array(["train", "test"]), pa.array(["a", "b"]).dictionary_encode(), pa.array([10**17, 2], pa.timestamp("us")),
    pa.array([True, False]), pa.array(["\0", "a\0"]), pa.array([1, 2], pa.decimal128(38)), pa.array(["1e999", "NaN"]),
])  # fmt: skip
class_names = st.sampled_from([b'["a", "b"]', b"[]", b"{}", b"3", b"[1, 2]", b"\xff", b"[" * 5000, b"", b'"ab"'])


@fuzz
@given(data=st.data())
def test_parquet_of_tasks(outside, data):
    changed = data.draw(st.dictionaries(st.sampled_from([*REQUIRED_COLUMNS, "image"]), columns, max_size=3))
    good = {name: pa.array(["a", "b"]) for name in REQUIRED_COLUMNS}
    good |= {"label": pa.array([0, 1]), "split": pa.array(["train", "test"])}
    names = data.draw(class_names)
    extra = {b"pandas": data.draw(st.sampled_from([b"", b"{}", b'{"index_columns": [1]}', b"\xff"]))}
    table = pa.table(good | changed).replace_schema_metadata({b"class_names": names} | extra)
    pq.write_table(table, outside / "t.parquet")
    damage(data, outside / "t.parquet")
    task = tried(lambda: load_task(str(outside / "t.parquet")))
    if task is not None:
        assert task.labels.dtype == np.int64
        assert set(task.labels) <= set(range(len(task.class_names)))
        tried(lambda: task.images)


@fuzz
@given(data=st.data())
def test_parquet_of_summaries(outside, data):
    frame = summary_frame(0.5)
    good = pa.Table.from_pandas(pa.concat_tables([pa.Table.from_pandas(frame)] * 2).to_pandas())
    changed = data.draw(st.dictionaries(st.sampled_from(good.column_names), columns, max_size=2))
    table = pa.table({name: changed.get(name, good[name]) for name in good.column_names})
    table = table.drop_columns(data.draw(st.lists(st.sampled_from(good.column_names), max_size=1)))
    if data.draw(st.booleans()):
        pandas = data.draw(st.sampled_from([b"", b"{}", b'{"index_columns": ["x"]}', b"\xff"]))
        table = table.replace_schema_metadata({b"pandas": pandas})
    pq.write_table(table, outside / "summary.parquet")
    damage(data, outside / "summary.parquet")
    found = tried(lambda: summary_of_runs(outside))
    assert found is None or len(found) <= 2


def damage(data, path):
    """Sometimes change or cut a file of Parquet."""
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["none", "none", "byte", "cut"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "byte":
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[:place] if kind == "cut" else content)
