"""WebDataset shards: what webdataset writes is read by offset, wherever samples lie; torn shards are named."""

import json
import tarfile

import numpy as np
import pytest
import webdataset as wds

from nml_kit.data import load_task
from nml_kit.data.shards import key_words, require_unique_keys, shard_samples
from nml_kit.errors import DataFileError, InvalidInputError
from tests.miniatures import write_tar
from tests.pictures import encoded, pixels

COUNT = 12


def sample(number: int, *, labels: bool = True, captions: bool = True) -> dict:
    found = {"__key__": f"{number:06d}", "png": encoded(pixels(number))}
    if captions:
        found["txt"] = f"picture {number}" + " and so on" * (100 * (number == 3))
    if labels:
        found["cls"] = number % 3
    return found


def write_shards(folder, shards: int, count: int = COUNT, stem: str = "in", **what) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, numbers in enumerate(np.array_split(np.arange(count), shards)):
        with wds.TarWriter(str(folder / f"{stem}-{shard:03d}.tar")) as writer:
            for number in numbers.tolist():
                writer.write(sample(number, **what))
    return str(folder / f"{stem}-{{000..{shards - 1:03d}}}.tar")


def test_samples_are_those_of_webdataset_however_they_are_sharded(tmp_path):
    tasks = [load_task(write_shards(tmp_path / str(shards), shards)) for shards in (1, 6)]
    theirs = wds.WebDataset(str(tmp_path / "6" / "in-{000..005}.tar"), shardshuffle=False).decode("rgb8")
    expected = {one["__key__"]: (one["png"], one["txt"], one["cls"]) for one in theirs}
    for task in tasks:
        assert task.ids.tolist() == list(expected)
        np.testing.assert_array_equal(task.images, np.stack([image for image, _, _ in expected.values()]))
        assert task.captions.tolist() == [caption for _, caption, _ in expected.values()]
        assert task.labels.tolist() == [label for _, _, label in expected.values()]
        assert task.captions.dtype == object
        assert set(task.splits) == {"train"}
    assert tasks[0].fingerprint == tasks[1].fingerprint
    assert tasks[0].class_names == ("0", "1", "2")


def test_images_are_read_in_any_order(tmp_path):
    task = load_task(write_shards(tmp_path, 3))
    rows = np.array([11, 0, 6])
    np.testing.assert_array_equal(task.inputs(rows), np.stack([pixels(row) for row in rows]))


def test_captions_and_labels_may_be_in_json_and_labels_may_be_missing(tmp_path):
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(4):
            notes = json.dumps({"label": "cat" if number % 2 else "dog", "caption": f"c{number}", "url": "x"}).encode()
            writer.write({"__key__": f"k/{number}", "jpg": encoded(pixels(number), "JPEG"), "json": notes})
    task = load_task(tmp_path / "a.tar")
    assert task.ids.tolist() == ["k/0", "k/1", "k/2", "k/3"]
    assert task.class_names == ("cat", "dog")
    assert task.labels.tolist() == [1, 0, 1, 0]
    assert task.captions.tolist() == ["c0", "c1", "c2", "c3"]
    unlabelled = load_task(write_shards(tmp_path / "b", 2, labels=False))
    assert unlabelled.class_names == ("unlabelled",)


def test_splits_are_in_the_names_of_shards(tmp_path):
    write_shards(tmp_path, 2, stem="x-train")
    with wds.TarWriter(str(tmp_path / "x-val-000.tar")) as writer:
        writer.write(sample(100))
    task = load_task(str(tmp_path / "{x-train-{000..001},x-val-000}.tar"))
    assert task.select(split="test").ids.tolist() == ["000100"]
    assert (task.splits == "train").sum() == COUNT


def test_a_shard_cut_anywhere_is_named(tmp_path):
    pattern = write_shards(tmp_path, 3)
    shard = tmp_path / "in-001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in tar]
    for cut in (0, 100, 512, ends[0], ends[1] + 100, ends[1] + 512, ends[-2] + 513, ends[-1] - 512, ends[-1]):
        shard.write_bytes(whole[:cut])
        with pytest.raises(DataFileError, match=rf"in-001\.tar \({cut} bytes\): expected a whole, uncompressed tar"):
            load_task(pattern)


def test_a_shard_that_is_cut_after_it_was_indexed_is_named(tmp_path):
    task = load_task(write_shards(tmp_path, 2))
    (tmp_path / "in-001.tar").write_bytes((tmp_path / "in-001.tar").read_bytes()[:600])
    with pytest.raises(DataFileError, match=r"in-001\.tar, byte \d+: expected \d+ bytes, got \d+: it was cut short"):
        task.inputs(slice(6, 8))


def test_a_missing_shard_a_missing_caption_and_an_image_that_does_not_decode_are_named(tmp_path):
    pattern = write_shards(tmp_path, 3)
    with pytest.raises(DataFileError, match=r"Expected 5 shards .* 2 are missing, as .*in-003\.tar"):
        load_task(pattern.replace("002", "004"))
    with wds.TarWriter(str(tmp_path / "in-002.tar")) as writer:
        writer.write(sample(50) | {"png": b"no picture"})
        writer.write(sample(51))
    with pytest.raises(DataFileError, match=r"sample '000050' \(.*in-002\.tar, byte \d+\) does not decode"):
        load_task(pattern).inputs(slice(8, 10))
    with wds.TarWriter(str(tmp_path / "in-002.tar")) as writer:
        writer.write(sample(50, captions=False))
    with pytest.raises(DataFileError, match=r"in-002\.tar: expected a caption for every sample, got none for '000050'"):
        load_task(pattern)


def test_a_compressed_shard_and_a_wrong_pattern_are_refused(tmp_path):
    with tarfile.open(tmp_path / "in-000.tar", "w:gz"):
        pass
    with pytest.raises(DataFileError, match="unpack it if it is compressed"):
        load_task(tmp_path / "in-000.tar")
    with pytest.raises(DataFileError, match="Expected a pattern as"):
        load_task(str(tmp_path / "in-{000..0.tar"))


@pytest.mark.parametrize("late", ["a.cls", "a.txt", "a.json", "a.png"])
def test_files_of_a_sample_that_are_apart_are_named(tmp_path, late):
    """What stands after the next sample, or before it, is not left out."""
    files = {f"{key}.{suffix}": b"1" for key in "ab" for suffix in ("png", "txt", "cls")} | {"a.json": b"{}"}
    ordered = dict(sorted(files.items()))
    write_tar(tmp_path / "in.tar", ordered)
    assert load_task(tmp_path / "in.tar").ids.tolist() == ["a", "b"]
    rest = {name: content for name, content in ordered.items() if name != late}
    message = r"in\.tar: expected the files of 'a' side by side.* got 'a\..*' after others; .*tar --sort=name"
    for apart in (rest | {late: ordered[late]}, {late: ordered[late], "__.txt": b"x"} | rest):
        write_tar(tmp_path / "in.tar", apart)
        with pytest.raises(DataFileError, match=message):
            load_task(tmp_path / "in.tar")


def test_two_images_of_one_key_are_named(tmp_path):
    write_tar(tmp_path / "in.tar", {"a.jpg": b"1", "a.png": b"2"})
    with pytest.raises(DataFileError, match=r"'a' side by side, and one image among them, got 'a\.png'"):
        load_task(tmp_path / "in.tar")


def test_a_key_of_two_shards_is_named_with_both(tmp_path):
    pattern = write_shards(tmp_path, 3)
    (tmp_path / "in-002.tar").write_bytes((tmp_path / "in-000.tar").read_bytes())
    with pytest.raises(InvalidInputError, match=r"got '000000' twice, in .*in-000\.tar and .*in-002\.tar; rename"):
        load_task(pattern)


def test_keys_of_the_same_bits_by_chance_are_no_repeated_key(tmp_path):
    write_shards(tmp_path, 2)
    paths = sorted(tmp_path.glob("*.tar"))
    words = [key_words(shard_samples(path)) for path in paths]
    require_unique_keys(paths, [words[0], np.append(words[0][:2], words[0][:2])])
