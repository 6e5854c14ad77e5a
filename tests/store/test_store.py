"""The store: canonical keys, immutable verified entries, one builder, no torn reads, clear errors."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from nml_kit.errors import CorruptEntryError, DataFileError, InvalidInputError, StoreError, UnknownNameError
from nml_kit.store import Store, files, fingerprint, read_json, read_tensors, write_json, write_tensors

KEY = {"data": "icons", "layer": "pool", "ids": np.array(["a", "bé"]), "ratio": 0.1, "seed": 1, "none": None}
PIECES = 12
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # else each process imports this module and its imports anew

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def piece(index: int) -> bytes:
    return hashlib.sha256(str(index).encode()).digest() * 2000


def build_in_pieces(work: Path) -> dict:
    """Write PIECES scratch files, continuing with those that exist, and join them into the entry."""
    made = 0
    for index in range(PIECES):
        if not (work / f"piece{index}.safetensors").exists():
            write_tensors(work / f"piece{index}.safetensors", {"x": np.frombuffer(piece(index), np.uint8)})
            made += 1
            time.sleep(0.01)
    with (work.parent.parent / "made.txt").open("a") as log:
        log.write(f"{made}\n")
    # Not by read_tensors: in a fresh process it spends longer on importing torch than the build takes.
    parts = [load_file(work / f"piece{index}.safetensors")["x"] for index in range(PIECES)]
    write_tensors(work / "entry" / "tensors.safetensors", {"x": np.concatenate(parts)})
    return {"pieces": PIECES}


def build_small(work: Path) -> dict:
    write_tensors(work / "entry" / "tensors.safetensors", {"x": np.arange(6.0).reshape(2, 3)})
    write_json(work / "entry" / "notes.json", {"b": 1, "a": "é"})
    return {"rows": 2}


def fail_to_build(work: Path) -> dict:
    raise ZeroDivisionError("the builder's own error")


def request_pieces(root: str, go=None, ready=None) -> str:
    if ready is not None:
        ready.set()
    if go is not None:
        go.wait(60)
    return Store(root).get_or_build("features", KEY, build_in_pieces).digest


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


# Keys


@settings(deadline=None)
@given(json_values)
def test_fingerprint_ignores_dict_order_and_survives_json(value):
    def reversed_dicts(item):
        if isinstance(item, dict):
            return {name: reversed_dicts(item[name]) for name in reversed(item)}
        return [reversed_dicts(part) for part in item] if isinstance(item, list) else item

    assert fingerprint(reversed_dicts(value)) == fingerprint(value)
    assert fingerprint(json.loads(json.dumps(value))) == fingerprint(value)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (1, True),
        (0, None),
        ("1", 1),
        (0.0, -0.0),
        (["ab", "c"], ["a", "bc"]),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ([[1], 2], [1, [2]]),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(2, np.float32), np.zeros(2, np.int32)),
        (np.array(["ab", "c"]), np.array(["a", "bc"])),
        (np.array([b"ab", b"c"], object), np.array([b"a", b"bc"], object)),
        (np.array([b"a", b"b"], object), np.array(["a", "b"], object)),
        (np.array([b"a\0"], object), np.array([b"a"], object)),
        (b"a", "a"),
        (b"a", b"b"),
    ],
)
def test_fingerprint_tells_apart(left, right):
    assert fingerprint(left) != fingerprint(right)


def test_fingerprint_is_the_same_for_equal_content():
    table = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert fingerprint(table) == fingerprint(np.asfortranarray(table)) == fingerprint(table.astype(">i4"))
    assert fingerprint(table[:, ::2]) == fingerprint(table[:, ::2].copy())
    texts = ["a", "été"]
    assert fingerprint(np.array(texts)) == fingerprint(np.array(texts, object))
    assert fingerprint(np.array(texts)) == fingerprint(np.array(texts, "U50"))
    assert fingerprint(float("nan")) == fingerprint(np.float64("nan"))
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint(np.empty((0, 3))) == fingerprint(np.empty((0, 3)))


def test_fingerprint_of_known_value_never_changes():
    assert (
        fingerprint({"a": [1, 2.5, None], "b": "é"}) == hashlib.sha256(b'{"a":[1,2.5,null],"b":"\\u00e9"}').hexdigest()
    )


@pytest.mark.parametrize("value", [{1, 2}, {1: "a"}, object(), np.float32(1), Path("x"), {"a": [{"b": 1j}]}])
def test_fingerprint_refuses_other_types(value):
    with pytest.raises(InvalidInputError, match=r"Expected dicts with text keys.* got .*convert it"):
        fingerprint(value)


@pytest.mark.parametrize(
    "array", [np.array(["a", None], object), np.array(["a", b"a"], object), np.array(["2020"], "M8[Y]")]
)
def test_fingerprint_refuses_other_arrays(array):
    with pytest.raises(InvalidInputError, match="Expected an array of numbers, of texts or of bytes, got dtype"):
        fingerprint(array)


# Files


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<u1", "?"]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_tensors_come_back_as_they_were(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    write_tensors(path, {"x": array, "transposed": array.T})
    found = read_tensors(path)
    assert found["x"].dtype == array.dtype
    np.testing.assert_array_equal(found["x"], array)
    np.testing.assert_array_equal(found["transposed"], array.T)


def test_equal_tensors_give_equal_bytes_also_with_metadata(tmp_path):
    notes = {str(index): "note" for index in range(8)}
    for name in "ab":
        write_tensors(tmp_path / name, {"x": np.arange(3), "y": np.ones(2)}, notes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_are_mapped_and_writing_into_them_leaves_the_file_alone(tmp_path):
    write_tensors(tmp_path / "x", {"x": np.zeros(1000)})
    read_tensors(tmp_path / "x")["x"][:] = 7
    assert read_tensors(tmp_path / "x")["x"].max() == 0


def test_bfloat16_is_read_as_float32(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "x")
    found = read_tensors(tmp_path / "x")["x"]
    assert found.dtype == np.float32
    assert found.tolist() == [1.5, -2.0]


def test_text_is_no_tensor(tmp_path):
    with pytest.raises(InvalidInputError, match="Expected numbers in tensor 'names', got dtype <U1; convert it"):
        write_tensors(tmp_path / "x", {"names": np.array(["a"])})
    assert list(tmp_path.iterdir()) == []


def test_json_is_sorted_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "x.json", {"b": [1, 2.5], "a": "é"})
    text = (tmp_path / "x.json").read_text("utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    assert read_json(tmp_path / "x.json") == {"a": "é", "b": [1, 2.5]}
    with pytest.raises(InvalidInputError, match=r"Expected plain JSON data, got: .*int64.*\.item\(\)"):
        write_json(tmp_path / "x.json", {"a": np.int64(3)})
    assert read_json(tmp_path / "x.json") == {"a": "é", "b": [1, 2.5]}


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "bad").write_bytes(b"no")
    for path in (tmp_path / "bad", tmp_path / "absent"):
        with pytest.raises(DataFileError, match=f"Expected a safetensors file at .*{path.name}, got: .*make it again"):
            read_tensors(path)
        with pytest.raises(DataFileError, match=f"Expected a JSON file at .*{path.name}, got: .*make it again"):
            read_json(path)


def test_files_follow_the_umask(tmp_path):
    write_tensors(tmp_path / "tensors", {"x": np.ones(1)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Entries


def test_entry_is_built_once_and_readable(store):
    assert store.find("features", KEY) is None
    assert not store.root.exists()
    entry = store.get_or_build("features", KEY, build_small)
    again = store.get_or_build("features", dict(reversed(KEY.items())), fail_to_build)
    assert again == entry == store.find("features", KEY) == store.open("features", entry.digest)
    assert entry.card == {"rows": 2}
    assert entry.tensors()["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read_json(entry.path / "notes.json") == {"a": "é", "b": 1}
    assert list((store.root / "work").iterdir()) == []


def test_manifest_is_complete_and_readable(store):
    entry = store.get_or_build("features", KEY, build_small)
    manifest = json.loads((entry.path / "manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "features"
    assert manifest["format"] == 1
    assert manifest["key"]["layer"] == "pool"
    assert manifest["key"]["ids"].startswith("array str [2] sha256:")
    assert fingerprint(manifest["key"]) == manifest["digest"] == entry.path.name == fingerprint(KEY)
    assert set(manifest["files"]) == {"tensors.safetensors", "notes.json"}
    for name, found in manifest["files"].items():
        content = (entry.path / name).read_bytes()
        assert found == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert manifest["created"].endswith("+00:00")
    assert set(manifest["versions"]) == {"nml_kit", "numpy", "torch"}


def test_other_key_or_kind_is_another_entry(store):
    first = store.get_or_build("features", KEY, build_small)
    assert store.find("features", KEY | {"seed": 2}) is None
    assert store.find("other", KEY) is None
    second = store.get_or_build("features", KEY | {"seed": 2}, build_small)
    assert first.path != second.path
    assert [info.digest for info in store.entries("features")] == sorted([first.digest, second.digest])
    assert all(info.bytes > 48 and info.created and not info.problem for info in store.entries())
    assert list(store.entries("other")) == []


def test_unknown_file_or_digest_names_the_nearest(store):
    entry = store.get_or_build("features", KEY, build_small)
    with pytest.raises(UnknownNameError, match=r"'tensor.safetensors': did you mean 'tensors.safetensors'\?"):
        entry.tensors("tensor.safetensors")
    with pytest.raises(UnknownNameError, match=f"Unknown features entry.*did you mean '{entry.digest}'"):
        store.open("features", entry.digest[:-3] + "000")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "../x", "/etc", "a\\b", "a\n"])
def test_names_stay_inside_the_root(store, name):
    with pytest.raises(InvalidInputError, match="Expected a name of letters, digits"):
        store.get_or_build(name, KEY, build_small)
    with pytest.raises(InvalidInputError, match="Expected a name of letters, digits"):
        store.open("features", name)
    assert not store.root.exists()


def test_entry_holds_plain_files_with_safe_names_only(store):
    def build_hidden(work):
        (work / "entry" / ".secret").touch()
        return {}

    def build_directory(work):
        (work / "entry" / "folder").mkdir()
        return {}

    with pytest.raises(InvalidInputError, match=r"Expected a name of letters.*'\.secret'"):
        store.get_or_build("features", KEY, build_hidden)
    with pytest.raises(StoreError, match="Is a directory"):
        store.get_or_build("features", KEY | {"seed": 5}, build_directory)
    assert list(store.entries()) == []


def test_card_must_be_plain(store):
    with pytest.raises(InvalidInputError, match="Expected plain JSON data"):
        store.get_or_build("features", KEY, lambda work: {"rows": np.int64(1)})
    assert store.find("features", KEY) is None


def test_root_comes_from_argument_then_environment_then_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NML_HOME", str(tmp_path / "env"))
    assert Store().root == tmp_path / "env"
    assert Store(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.delenv("NML_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().root.name == "nml_kit"
    assert Store("~/somewhere").root == Path.home() / "somewhere"


# Damage


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tensors.safetensors", "notes.json"])
def test_flipped_byte_is_found_and_explained(store, name):
    entry = store.get_or_build("features", KEY, build_small)
    expected = entry.manifest["files"][name]["sha256"]
    flip_byte(entry.path / name, -3)
    found = hashlib.sha256((entry.path / name).read_bytes()).hexdigest()
    for ask in (store.find, lambda *key: store.get_or_build(*key, build_small)):
        with pytest.raises(CorruptEntryError) as caught:
            ask("features", KEY)
        for part in (str(entry.path / name), expected, found, "`nml store prune --corrupt` and run again"):
            assert part in str(caught.value)


def test_any_flipped_byte_of_the_manifest_is_found_or_harmless(store):
    entry = store.get_or_build("features", KEY, build_small)
    path = entry.path / "manifest.json"
    content = path.read_bytes()
    caught = 0
    positions = range(0, len(content), 7)  # one in seven: all kinds of bytes, and not all of them
    for position in positions:
        flip_byte(path, position)
        (info,) = store.verify() or [None]
        if info is None:  # a blank that became another blank
            assert store.find("features", KEY).manifest == entry.manifest
        else:
            assert str(path) in info.problem
            caught += 1
        path.write_bytes(content)
    assert caught > 0.8 * len(positions)


@pytest.mark.parametrize("kept", [0, 1, 100, -5])
def test_truncated_manifest(store, kept):
    entry = store.get_or_build("features", KEY, build_small)
    path = entry.path / "manifest.json"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptEntryError, match=r"Expected the manifest .*manifest\.json.*, got: .*prune --corrupt"):
        store.find("features", KEY)
    assert "manifest.json" in next(store.entries()).problem


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"a": 1}'])
def test_foreign_manifest(store, content):
    entry = store.get_or_build("features", KEY, build_small)
    (entry.path / "manifest.json").write_text(content)
    with pytest.raises(CorruptEntryError, match=r"manifest\.json.*got"):
        store.find("features", KEY)


def test_entry_copied_under_another_key_is_refused(store):
    entry = store.get_or_build("features", KEY, build_small)
    entry.path.rename(entry.path.with_name(fingerprint(KEY | {"seed": 2})))
    with pytest.raises(CorruptEntryError, match=r"digest .* or a checksum"):
        store.find("features", KEY | {"seed": 2})


@pytest.mark.parametrize("name", ["tensors.safetensors", "manifest.json"])
def test_missing_file(store, name):
    entry = store.get_or_build("features", KEY, build_small)
    (entry.path / name).unlink()
    with pytest.raises(CorruptEntryError, match=f"{name}.*No such file"):
        store.find("features", KEY)


def test_verify_and_prune_remove_what_is_corrupt_and_abandoned(store):
    good = store.get_or_build("features", KEY, build_small)
    bad = store.get_or_build("features", KEY | {"seed": 2}, build_small)
    with pytest.raises(ZeroDivisionError, match="the builder's own error"):
        store.get_or_build("features", KEY | {"seed": 3}, fail_to_build)
    flip_byte(bad.path / "tensors.safetensors", -1)
    assert [(info.path, "sha256" in info.problem) for info in store.verify()] == [(bad.path, True)]
    assert store.prune(corrupt_only=True) == [bad.path]
    (work,) = (store.root / "work").iterdir()
    assert store.prune() == [work]
    assert store.prune() == store.verify() == []
    assert store.find("features", KEY) == good
    assert store.get_or_build("features", KEY | {"seed": 2}, build_small).manifest["files"] == good.manifest["files"]


def test_prune_leaves_work_that_is_under_way(store):
    def build_while_pruning(work):
        (work / "piece").touch()
        with PROCESSES.Pool(1) as pool:
            assert pool.apply(Store.prune, [store]) == []
        assert (work / "piece").exists()
        return build_small(work)

    assert store.get_or_build("features", KEY, build_while_pruning).card == {"rows": 2}


# Processes


def test_two_processes_build_once(tmp_path):
    with PROCESSES.Manager() as manager, PROCESSES.Pool(3) as pool:
        go = manager.Event()
        requests = [pool.apply_async(request_pieces, (str(tmp_path), go)) for _ in range(3)]
        go.set()
        digests = {request.get(100) for request in requests}
    assert digests == {fingerprint(KEY)}
    assert (tmp_path / "made.txt").read_text() == f"{PIECES}\n"


def test_killed_at_random_moments_then_right(tmp_path):
    """Eight kills, each within the time of one build; after none of them a reader sees anything torn."""
    moments = random.Random(0)
    store, expected = Store(tmp_path / "home"), b"".join(map(piece, range(PIECES)))
    began = time.monotonic()
    request_pieces(str(tmp_path / "undisturbed"))
    duration = time.monotonic() - began
    killed, finished_pieces = 0, 0
    while killed < 8:
        ready = PROCESSES.Event()
        process = PROCESSES.Process(target=request_pieces, args=(str(store.root), None, ready))
        process.start()
        assert ready.wait(60)
        process.join(moments.uniform(0, duration))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        entry = store.find("features", KEY)
        assert entry is None or entry.tensors()["x"].tobytes() == expected
        for path in (store.root / "work").glob("*/*.safetensors"):
            assert read_tensors(path)["x"].nbytes == len(piece(0))
            finished_pieces += 1
        if entry is not None:  # start anew, so that kills fall on every part of a build
            shutil.rmtree(entry.path)
    assert finished_pieces > 0
    assert store.get_or_build("features", KEY, build_in_pieces).tensors()["x"].tobytes() == expected
    assert list(store.root.rglob(".tmp*")) == list((store.root / "work").iterdir()) == []


def test_work_continues_after_an_error(store):
    def build_until_third_piece(work):
        for index in range(3):
            write_tensors(work / f"piece{index}.safetensors", {"x": np.frombuffer(piece(index), np.uint8)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_build("features", KEY, build_until_third_piece)
    assert store.find("features", KEY) is None
    entry = store.get_or_build("features", KEY, build_in_pieces)
    assert (store.root / "made.txt").read_text() == f"{PIECES - 3}\n"
    assert entry.tensors()["x"].tobytes() == b"".join(map(piece, range(PIECES)))


def test_leftovers_of_killed_writers_do_not_become_part_of_the_entry(store):
    with pytest.raises(ZeroDivisionError):
        store.get_or_build("features", KEY, fail_to_build)
    (work,) = (store.root / "work").iterdir()
    for name in (".tmp-host-1-abc", ".tmpsEU6OS"):  # ours and safetensors'
        (work / "entry" / name).write_bytes(b"half")
    (work / "entry" / "manifest.json").write_bytes(b"of a process killed before the rename")
    entry = store.get_or_build("features", KEY, build_small)
    assert {path.name for path in entry.path.iterdir()} == {"manifest.json", "notes.json", "tensors.safetensors"}
    assert store.verify() == []


def test_lost_rename_race_uses_the_winner(store):
    """Without locks (some NFS) another process can publish the entry while this one builds."""

    def build_and_lose(work):
        winner = Store(store.root.with_name("winner")).get_or_build("features", KEY, build_small)
        target = store.root / "entries" / "features"
        target.mkdir(parents=True)
        winner.path.rename(target / winner.digest)
        write_tensors(work / "entry" / "tensors.safetensors", {"x": np.zeros(1)})
        return {"loser": True}

    assert store.get_or_build("features", KEY, build_and_lose).card == {"rows": 2}
    assert list((store.root / "work").iterdir()) == []


# Disks


@pytest.mark.parametrize("failing_call", range(1, 9))
def test_full_disk_leaves_nothing_half_written(store, monkeypatch, failing_call):
    """The disk is full at the n-th fsync: in the builder, the publication, the manifest or the rename."""
    real_fsync, calls = os.fsync, 0

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    def build(work):
        if not (work / "done.json").exists():
            write_json(work / "done.json", 1)
        return build_small(work)

    monkeypatch.setattr(files.os, "fsync", fsync)
    message = r"Expected to write .*home.*No space left on device.*\d+ bytes are free.*NML_HOME.*run again"
    with pytest.raises(StoreError, match=message):
        store.get_or_build("features", KEY, build)
    assert list(store.root.rglob(".tmp*")) == []
    assert store.find("features", KEY) is None
    assert (store.root / "work" / f"features-{fingerprint(KEY)}" / "done.json").exists() is (failing_call > 1)
    assert store.get_or_build("features", KEY, build).tensors()["x"].shape == (2, 3)


def test_full_disk_in_the_builders_own_writes(store):
    def build_on_full_disk(work):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def build_without_source(work):
        raise FileNotFoundError("source image")

    with pytest.raises(StoreError, match=r"Expected to write .*work.*No space left.*finished pieces are kept"):
        store.get_or_build("features", KEY, build_on_full_disk)
    with pytest.raises(FileNotFoundError, match="source image"):
        store.get_or_build("features", KEY, build_without_source)


def test_write_that_the_system_refuses(tmp_path):
    """A real refusal: files of this process may not grow beyond 64 KiB."""
    result = run_python(
        """
        import resource, signal, sys
        import numpy as np
        from nml_kit.store import write_tensors
        from nml_kit.store import Store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        def build(work):
            write_tensors(work / "small.safetensors", {"x": np.zeros(10)})
            write_tensors(work / "entry" / "tensors.safetensors", {"x": np.zeros(1 << 16)})
            return {}
        Store(sys.argv[1]).get_or_build("features", {"a": 1}, build)
        """,
        str(tmp_path),
    )
    assert "StoreError: Expected to write" in result.stderr
    assert "bytes are free" in result.stderr
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["small.safetensors"]
    assert list(tmp_path.rglob(".tmp*")) == []


def test_read_only_root_is_readable_and_says_nml_home(tmp_path_factory):
    """Done by a user who owns nothing, because root may write anywhere."""
    import tempfile

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)
        Store(home).get_or_build("features", {"a": 1}, build_small)
        for folder in (Path(home), *(path for path in Path(home).rglob("*") if path.is_dir())):
            folder.chmod(0o555)
        result = run_python(
            """
            import os, sys
            from nml_kit.store import Store
            if os.getuid() == 0:
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
            store = Store(sys.argv[1])
            print(store.get_or_build("features", {"a": 1}, None).card, flush=True)
            store.get_or_build("features", {"a": 2}, None)
            """,
            home,
        )
        for folder in (Path(home), *(path for path in Path(home).rglob("*") if path.is_dir())):
            folder.chmod(0o755)
    assert result.stdout == "{'rows': 2}\n"
    assert "StoreError: Expected to write" in result.stderr
    assert "set NML_HOME to a directory that is writable" in result.stderr


def test_import_is_light():
    result = run_python("import sys, nml_kit.store.store; print('torch' in sys.modules, 'pandas' in sys.modules)")
    assert result.stdout == "False False\n"
