"""Captions exchanged across shards: the very exchange of the function in memory, whatever the shards, killed or not."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nml_kit import inject_caption_noise
from nml_kit.data import inject_caption_noise_into_shards, read_noise_settings
from nml_kit.data.caption_shards import caption_plan
from nml_kit.data.shards import Caption
from nml_kit.errors import DataFileError, InvalidInputError, StoreError


def write_shards(directory: Path, captions: dict[str, str], count: int) -> str:
    """Shards `in-0000.tar`, … of samples with an image, a caption and a note; the pattern that names them."""
    directory.mkdir(parents=True)
    parts = np.array_split(np.array(list(captions), dtype=object), count)
    for number, keys in enumerate(parts):
        with tarfile.open(directory / f"in-{number:04d}.tar", "w") as tar:
            for key in keys:
                for suffix, content in (("jpg", key * 3), ("txt", captions[key]), ("json", json.dumps({"id": key}))):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    data = content.encode()
                    member.size, member.mtime, member.uname = len(data), 1234567890, "someone"
                    tar.addfile(member, io.BytesIO(data))
    return f"{directory}/in-{{0000..{count - 1:04d}}}.tar"


def read_captions(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    found[member.name.removesuffix(".txt")] = tar.extractfile(member).read().decode()
    return found


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


def shuffled_captions(count: int, *, texts: int, seed: int = 0) -> dict[str, str]:
    """`count` samples with `texts` captions, some much more frequent than others."""
    generator = np.random.default_rng(seed)
    numbers = (texts * generator.random(count) ** 2).astype(int)
    keys = generator.permutation(count)
    return {f"{key:07d}": f"caption ü {number}" for key, number in zip(keys, numbers, strict=True)}


@pytest.mark.parametrize("texts", [10**6, 300, 7, 3])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_the_exchange_is_that_of_the_function_in_memory(tmp_path, texts, ratio):
    captions = shuffled_captions(600, texts=texts)
    pattern = write_shards(tmp_path / "in", captions, 3)
    record = inject_caption_noise_into_shards(pattern, tmp_path / "out", ratio, seed=5, progress=False)
    keys = list(captions)
    expected = inject_caption_noise(list(captions.values()), ratio, seed=5, ids=keys)
    assert read_captions(tmp_path / "out") == dict(zip(keys, expected.noisy, strict=True))
    rows = pq.read_table(record).to_pandas().set_index("id")
    assert rows.index.tolist() == sorted(keys)
    assert rows.loc[keys, "source"].tolist() == [keys[source] for source in expected.source]
    assert rows.loc[keys, "changed"].tolist() == expected.mask.tolist()
    about = json.loads(pq.read_schema(record).metadata[b"nml_kit"])
    assert (about["samples"], about["changed"], about["seed"]) == (600, int(expected.mask.sum()), 5)
    assert about["realised_ratio"] == expected.realised_ratio


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.sampled_from("abcdé"), min_size=1, max_size=30), ratio=st.floats(0, 1), seed=st.integers(0, 9))
def test_any_small_set_changes_or_fails_as_in_memory(tmp_path_factory, data, ratio, seed):
    directory = tmp_path_factory.mktemp("small")
    captions = {f"k{place}": text for place, text in enumerate(data)}
    pattern = write_shards(directory / "in", captions, 2)
    try:
        expected = inject_caption_noise(data, ratio, seed=seed, ids=list(captions))
    except InvalidInputError:
        with pytest.raises(InvalidInputError, match="captions to exchange texts"):
            inject_caption_noise_into_shards(pattern, directory / "out", ratio, seed=seed, progress=False)
        return
    inject_caption_noise_into_shards(pattern, directory / "out", ratio, seed=seed, progress=False)
    assert list(read_captions(directory / "out").values()) == expected.noisy.tolist()


def test_count_fixed_points_texts_and_originals(tmp_path):
    captions = shuffled_captions(1000, texts=200)
    pattern = write_shards(tmp_path / "in", captions, 4)
    before = {path: (path.stat().st_mtime_ns, digest) for path in (tmp_path / "in").iterdir()
              for digest in [hashlib.sha256(path.read_bytes()).hexdigest()]}  # fmt: skip
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.3, seed=1, progress=False)
    after = read_captions(tmp_path / "out")
    assert sum(after[key] != captions[key] for key in captions) == 300
    assert Counter(after.values()) == Counter(captions.values())
    assert before == {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in before}
    for name in hashes(tmp_path / "in"):
        with tarfile.open(tmp_path / "in" / name) as old, tarfile.open(tmp_path / "out" / name) as new:
            for left, right in zip(old, new, strict=True):
                headers = [one.get_info() | {"size": 0, "chksum": 0} for one in (left, right)]
                assert headers[0] == headers[1]
                assert old.extractfile(left).read() == new.extractfile(right).read() or left.name.endswith(".txt")


def test_whatever_else_is_in_a_shard_is_copied_and_webdataset_reads_it(tmp_path):
    """Long and foreign names, times with fractions, folders, links, notes of no sample, several suffixes."""
    keys = [f"ordner ü/{'x' * 120}/{number:04d}" for number in range(8)]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as tar:
        for number, key in enumerate(keys):
            for suffix, content in (("seg.png", b"p" * 513), ("TXT", f"text {number}".encode() * 200 * number)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size, member.mtime = len(content), 1.5 + number
                tar.addfile(member, io.BytesIO(content))
        for name, kind in (("folder", tarfile.DIRTYPE), ("link.txt", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, keys[0]
            tar.addfile(member)
        for name in ("README", "__meta__/about.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"note"))
    record = inject_caption_noise_into_shards(tmp_path / "a.tar", tmp_path / "out", 0.5, seed=0, progress=False)
    rows = pq.read_table(record).to_pandas().set_index("id")
    assert rows.index.tolist() == keys
    assert rows["changed"].sum() == 4
    with tarfile.open(tmp_path / "a.tar") as old, tarfile.open(tmp_path / "out" / "a.tar") as new:
        for left, right in zip(old, new, strict=True):
            assert left.get_info() | {"size": 0, "chksum": 0} == right.get_info() | {"size": 0, "chksum": 0}
    theirs = [
        {one["__key__"]: (one["seg.png"], one["txt"]) for one in wds.WebDataset(str(path), shardshuffle=False)
         if "seg.png" in one}
        for path in (tmp_path / "a.tar", tmp_path / "out" / "a.tar")
    ]  # fmt: skip
    assert list(theirs[0]) == list(theirs[1]) == keys
    for key in keys:
        assert theirs[1][key] == (theirs[0][key][0], theirs[0][rows.loc[key, "source"]][1])


def test_white_space_around_does_not_make_another_caption(tmp_path):
    """A task reads captions without it, and an exchange of the same words would be none."""
    captions = {"a": "cat", "b": "cat\n", "c": " dog", "d": "dog"}
    pattern = write_shards(tmp_path / "in", captions, 2)
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 1.0, seed=0, progress=False)
    after = read_captions(tmp_path / "out")
    assert Counter(after.values()) == Counter(captions.values())
    assert all(after[key].strip() != captions[key].strip() for key in captions)


@pytest.mark.parametrize(("ratio", "share"), [(0.2, 0.3), (0.7, 0.6)])
def test_many_samples_of_which_many_have_one_caption(tmp_path, ratio, share):
    """150,000, more than a block of the database; 0.7 of them can change only if some with that caption do not."""
    generator = np.random.default_rng(0)
    texts = np.where(
        generator.random(150_000) < share, "IMG", generator.integers(0, 60_000, 150_000).astype(str)
    ).tolist()
    keys = [f"{number * 7919 % 150_000:06d}" for number in range(150_000)]
    with caption_plan(tmp_path) as plan:
        plan.add_shard(0, "a", "", map(Caption, keys, texts, range(150_000)), 3)
        plan.decide(ratio)
        plan.write_record(tmp_path / "record.parquet", "{}")
    expected = inject_caption_noise(texts, ratio, seed=3, ids=keys)
    rows = pq.read_table(tmp_path / "record.parquet").to_pandas().set_index("id").loc[keys]
    assert (texts.count("IMG"), expected.mask.sum()) > (140_000 * share, 150_000 * ratio - 1)
    assert rows["changed"].tolist() == expected.mask.tolist()
    assert rows["source"].tolist() == [keys[source] for source in expected.source]


def test_nothing_changed_is_the_same_file(tmp_path):
    pattern = write_shards(tmp_path / "in", shuffled_captions(50, texts=9), 2)
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.0, seed=1, progress=False)
    kept = hashes(tmp_path / "out")
    assert {name: kept[name] for name in hashes(tmp_path / "in")} == hashes(tmp_path / "in")


def test_the_record_is_the_same_for_any_number_of_shards(tmp_path):
    captions, records = shuffled_captions(900, texts=200), set()
    for count in (1, 7, 30):
        pattern = write_shards(tmp_path / f"in{count}", captions, count)
        out = tmp_path / f"out{count}"
        record = inject_caption_noise_into_shards(pattern, out, 0.2, seed=3, progress=False)
        records.add((record.read_bytes(), tuple(sorted(read_captions(out).items()))))
    assert len(records) == 1


def started(pattern: str, out: Path) -> subprocess.Popen[str]:
    code = "from nml_kit.cli.main import app; app()"
    words = ["noise", "captions", pattern, str(out), "--ratio", "0.2", "--seed", "3"]
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)  # fmt: skip


def assert_made_the_same(out: Path, whole: Path) -> None:
    assert {name: digest for name, digest in hashes(out).items() if name != ".lock"} == {
        name: digest for name, digest in hashes(whole).items() if name != ".lock"
    }
    assert not (out / ".work").exists()


@pytest.mark.timeout(300)
def test_killed_at_any_moment_it_goes_on_and_makes_the_same(tmp_path):
    """While captions are read, while it is decided, while shards are written."""
    pattern = write_shards(tmp_path / "in", shuffled_captions(4000, texts=900), 40)
    seconds = []
    for _ in range(2):  # the second time there is nothing to do
        begun = time.monotonic()
        with started(pattern, tmp_path / "whole") as process:
            told, _ = process.communicate()
        seconds.append(time.monotonic() - begun)
        assert process.returncode == 0
        assert told.startswith("800 of 4000 samples have another's caption; who has whose: ")
    out, moments, codes = tmp_path / "killed", random.Random(0), []
    for number in range(5):  # delays add up to about one undisturbed run
        with started(pattern, out) as process:
            later = moments.uniform(0, (seconds[0] - seconds[1]) / 2.5) if number else 0.0  # the first is in time
            time.sleep(seconds[1] + later)
            process.send_signal(signal.SIGINT if number % 2 else signal.SIGKILL)
            _, errors = process.communicate()
        codes.append(process.returncode)
        assert process.returncode in (0, 130, -signal.SIGINT, -signal.SIGKILL), errors
        # Python itself, interrupted in a callback of its imports, says so and goes on.
        assert "Traceback" not in errors or "Exception ignored" in errors
        for path in out.glob("*.tar"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert codes[0] == -signal.SIGKILL
    inject_caption_noise_into_shards(pattern, out, 0.2, seed=3, progress=False)
    assert_made_the_same(out, tmp_path / "whole")


INTERRUPTED = (
    duckdb.InterruptException("INTERRUPT Error: Interrupted!"),
    RuntimeError("Query interrupted"),
    duckdb.InvalidInputException(
        "Invalid Input Error: exporting a stream from the object registered as 'batch' failed: KeyboardInterrupt: "
    ),
)


@pytest.mark.parametrize("made_of_it", INTERRUPTED)
def test_ctrl_c_is_ctrl_c_whatever_the_database_makes_of_it(made_of_it, tmp_path):
    """The messages are those that were seen when signals were sent at random moments."""
    with pytest.raises(KeyboardInterrupt), caption_plan(tmp_path):
        raise made_of_it
    with pytest.raises(StoreError, match="Make room there"), caption_plan(tmp_path):
        raise duckdb.IOException("IO Error: no space left")


def test_ctrl_c_while_the_database_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "duckdb.py").write_text("raise ImportError('Encountered an error') from KeyboardInterrupt()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "duckdb")
    with pytest.raises(KeyboardInterrupt), caption_plan(tmp_path / "work"):
        pass


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    """Neither reading, nor writing; what a killed writer left goes."""
    from nml_kit.data import caption_shards

    pattern = write_shards(tmp_path / "in", shuffled_captions(400, texts=90), 8)
    inject_caption_noise_into_shards(pattern, tmp_path / "whole", 0.2, seed=3, progress=False)
    out, done = tmp_path / "out", []
    for name, allowed in (("shard_captions", 5), ("shard_captions", 8), ("write_shard", 4), ("write_shard", 99)):
        function = getattr(caption_shards, name)

        def limited(path, *given, name=name, allowed=allowed, function=function):
            if len([one for one in done if one[0] == name]) == allowed:
                raise KeyboardInterrupt
            done.append((name, path.name))
            return function(path, *given)

        monkeypatch.setattr(caption_shards, name, limited)
        try:
            inject_caption_noise_into_shards(pattern, out, 0.2, seed=3, progress=False)
        except KeyboardInterrupt:
            (out / ".tmp-host-1-ab").touch()
        monkeypatch.setattr(caption_shards, name, function)
    assert_made_the_same(out, tmp_path / "whole")
    assert not list(out.glob(".tmp*"))
    assert len(set(done)) == len(done)


def test_another_setting_or_another_input_is_not_mixed_in(tmp_path):
    pattern = write_shards(tmp_path / "in", shuffled_captions(50, texts=50), 2)
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=3, progress=False)
    with pytest.raises(InvalidInputError, match="other settings"):
        inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.3, seed=3, progress=False)
    with pytest.raises(InvalidInputError, match="another directory"):
        inject_caption_noise_into_shards(pattern, tmp_path / "in", 0.2, seed=3, progress=False)
    touched = tmp_path / "in" / "in-0001.tar"
    os.utime(touched, ns=(1, 1))
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=3, progress=False)
    touched.write_bytes(touched.read_bytes().replace(b"caption", b"Caption"))
    with pytest.raises(InvalidInputError, match=r"in-0001\.tar has changed since"):
        inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=3, progress=False)


def test_bad_shards_are_named(tmp_path):
    pattern = write_shards(tmp_path / "in", shuffled_captions(60, texts=50), 2)
    path = tmp_path / "in" / "in-0001.tar"
    whole = path.read_bytes()

    def run(out):
        inject_caption_noise_into_shards(pattern, tmp_path / out, 0.2, seed=3, progress=False)

    for cut in (100, 700, 512 * 9, len(whole) // 2, len(whole) // 2 + 700):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataFileError, match=r"in-0001\.tar.*cut short"):
            run(f"out{cut}")
    path.unlink()
    with pytest.raises(DataFileError, match=r"1 are missing, as .*in-0001\.tar"):
        run("out")


def test_samples_without_caption_or_with_one_key_are_named(tmp_path):
    pattern = write_shards(tmp_path / "in", {"a": "x", "b": "y"}, 2)
    with pytest.raises(DataFileError, match=r"expected one caption \(\.cap\) for every sample.*'a'"):
        inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=3, caption="cap", progress=False)
    (tmp_path / "in" / "in-0001.tar").write_bytes((tmp_path / "in" / "in-0000.tar").read_bytes())
    with pytest.raises(InvalidInputError, match=r"'a' twice, in in-0000\.tar and in-0001\.tar"):
        inject_caption_noise_into_shards(pattern, tmp_path / "out2", 0.2, seed=3, progress=False)


def test_captions_and_names_that_are_not_utf8_are_named(tmp_path):
    for name, content, place in (("a.txt", b"\xff", "'a'"), ("b\udcff.txt", b"x", r"'b\\udcff'")):
        with tarfile.open(tmp_path / "in.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        with pytest.raises(DataFileError, match=rf"in\.tar: expected .* caption of {place} as UTF-8"):
            inject_caption_noise_into_shards(tmp_path / "in.tar", tmp_path / "out", 0.2, seed=3, progress=False)


def test_after_a_bad_shard_is_restored_it_goes_on(tmp_path):
    pattern = write_shards(tmp_path / "in", shuffled_captions(60, texts=50), 3)
    path = tmp_path / "in" / "in-0002.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(DataFileError, match="cut short"):
        inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=3, progress=False)
    path.write_bytes(whole)
    record = inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=3, progress=False)
    assert read_noise_settings(record) == {
        "version": 2, "seed": 3, "caption": "txt", "requested_ratio": 0.2, "realised_ratio": 0.2, "samples": 60,
        "changed": 12,
    }  # fmt: skip
    with pytest.raises(DataFileError, match="Expected a record of caption noise at"):
        read_noise_settings(path)


PEAK = "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024)"  # MiB
IN_SHARDS = """
import sys
from nml_kit.data import inject_caption_noise_into_shards
inject_caption_noise_into_shards(sys.argv[1], sys.argv[2], 0.3, seed=0, progress=False)
"""
IN_PLAN = """
import sys
from nml_kit.data import caption_shards
from nml_kit.data.shards import Caption
from pathlib import Path
caption_shards._MEMORY = "48MB"
count = int(sys.argv[1])
with caption_shards.caption_plan(Path(sys.argv[2])) as plan:
    for part in range(count // 10_000):
        rows = range(part * 10_000, (part + 1) * 10_000)
        captions = (Caption(f"{row:09d}", f"thing {row} " + "in the garden near the house " * 3, row) for row in rows)
        plan.add_shard(part, str(part), "", captions, 0)
    plan.decide(0.3)
    assert sum(1 for part in range(count // 10_000) for _ in plan.new_captions(part)) == count * 0.3
    plan.write_record(Path(sys.argv[2]) / "record.parquet", "{}")
"""


def peak(code: str, *words: object) -> int:
    command = [sys.executable, "-c", code + PEAK, *map(str, words)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_members_of_a_shard(tmp_path):
    peaks = []
    for count in (2_000, 20_000):
        pattern = write_shards(tmp_path / f"in{count}", shuffled_captions(count, texts=10**9), 1)
        peaks.append(peak(IN_SHARDS, pattern, tmp_path / f"out{count}"))
    assert peaks[1] - peaks[0] < 40  # tarfile alone would keep 60,000 members: 80


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_that_of_the_database(tmp_path):
    """Its 48 MB here are filled at 400,000 samples, whose keys and captions are 120 MB in Python."""
    few, many = (peak(IN_PLAN, count, tmp_path / str(count)) for count in (50_000, 400_000))
    assert many - few < 70


def test_settings_that_someone_has_changed_are_refused(tmp_path):
    pattern = write_shards(tmp_path / "in", shuffled_captions(20, texts=20), 2)
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=0, progress=False)
    settings = tmp_path / "out" / "noise-settings.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    for digests in ({}, {"in-0000.tar": "x"}, 7):
        settings.write_text(json.dumps(content | {"sha256": digests}), encoding="utf-8")
        with pytest.raises(DataFileError, match="expected the sha256 of each shard"):
            inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.2, seed=0, progress=False)
