"""Captions exchanged across shards: the very exchange of the function in memory, whatever the shards, killed or not."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nml_kit import inject_caption_noise
from nml_kit.caption_shards import RECORD, inject_caption_noise_into_shards
from nml_kit.errors import DataFileError, InvalidInputError


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
    captions = shuffled_captions(2000, texts=texts)
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
    assert (about["samples"], about["changed"], about["seed"]) == (2000, int(expected.mask.sum()), 5)
    assert about["realised_ratio"] == expected.realised_ratio


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    captions = shuffled_captions(3000, texts=500)
    pattern = write_shards(tmp_path / "in", captions, 4)
    before = {path: (path.stat().st_mtime_ns, digest) for path in (tmp_path / "in").iterdir()
              for digest in [hashlib.sha256(path.read_bytes()).hexdigest()]}  # fmt: skip
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.3, seed=1, progress=False)
    after = read_captions(tmp_path / "out")
    assert sum(after[key] != captions[key] for key in captions) == 900
    assert Counter(after.values()) == Counter(captions.values())
    assert before == {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in before}
    for name in hashes(tmp_path / "in"):
        with tarfile.open(tmp_path / "in" / name) as old, tarfile.open(tmp_path / "out" / name) as new:
            for left, right in zip(old, new, strict=True):
                assert (left.name, left.mtime, left.mode, left.uname) == (
                    right.name,
                    right.mtime,
                    right.mode,
                    right.uname,
                )
                if not left.name.endswith(".txt"):
                    assert old.extractfile(left).read() == new.extractfile(right).read()


def test_nothing_changed_is_the_same_file(tmp_path):
    pattern = write_shards(tmp_path / "in", shuffled_captions(50, texts=9), 2)
    inject_caption_noise_into_shards(pattern, tmp_path / "out", 0.0, seed=1, progress=False)
    kept = hashes(tmp_path / "out")
    assert {name: kept[name] for name in hashes(tmp_path / "in")} == hashes(tmp_path / "in")


def test_the_record_is_the_same_for_any_number_of_shards(tmp_path):
    captions, records = shuffled_captions(2500, texts=400), set()
    for count in (1, 7, 100):
        pattern = write_shards(tmp_path / f"in{count}", captions, count)
        out = tmp_path / f"out{count}"
        record = inject_caption_noise_into_shards(pattern, out, 0.2, seed=3, progress=False)
        records.add((record.read_bytes(), tuple(sorted(read_captions(out).items()))))
    assert len(records) == 1


def test_killed_midway_it_goes_on_and_makes_the_same(tmp_path):
    pattern = write_shards(tmp_path / "in", shuffled_captions(4000, texts=900), 40)
    inject_caption_noise_into_shards(pattern, tmp_path / "whole", 0.2, seed=3, progress=False)
    out = tmp_path / "killed"
    code = (
        "import sys, time; from nml_kit import caption_shards as c; write = c._write_shard\n"
        "def slowly(*given):\n    time.sleep(0.05); write(*given)\n"
        "c._write_shard = slowly\n"
        "c.inject_caption_noise_into_shards(sys.argv[1], sys.argv[2], 0.2, seed=3, progress=False)"
    )
    for shards in (3, 12):
        with subprocess.Popen([sys.executable, "-c", code, pattern, str(out)]) as process:
            while len(list(out.glob("in-*.tar"))) < shards and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        assert shards <= len(list(out.glob("in-*.tar"))) < 40
        assert not (out / RECORD).exists()
    first = (out / "in-0000.tar").stat().st_mtime_ns
    inject_caption_noise_into_shards(pattern, out, 0.2, seed=3, progress=False)
    assert (out / "in-0000.tar").stat().st_mtime_ns == first
    made = {name: digest for name, digest in hashes(out).items() if name.endswith((".tar", ".parquet"))}
    assert made.items() <= hashes(tmp_path / "whole").items()
    assert len(made) == 41


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


@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    code = (
        "import resource, sys; from nml_kit.caption_shards import inject_caption_noise_into_shards\n"
        "inject_caption_noise_into_shards(sys.argv[1], sys.argv[2], 0.3, seed=0, progress=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for count in (4_000, 40_000):
        pattern = write_shards(tmp_path / f"in{count}", shuffled_captions(count, texts=10**9), 1)
        command = [sys.executable, "-c", code, pattern, str(tmp_path / f"out{count}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 30  # MiB; the captions and ids alone are 10
