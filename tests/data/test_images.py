"""Pixels are as the file means them; the digest of files is remembered, and never outlives a change of them."""

import io
import os
import shutil
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from nml_kit.data import images, load_task
from nml_kit.data.images import FileParts
from nml_kit.data.load import join_tasks
from nml_kit.errors import DataFileError
from nml_kit.store import plain
from tests.data.test_shards import write_shards
from tests.pictures import write_class_folders


@pytest.fixture
def reads(monkeypatch):
    """Counts the files that are read."""
    counted = []
    read = FileParts.read
    monkeypatch.setattr(FileParts, "read", lambda self, number: counted.append(number) or read(self, number))
    return counted


@pytest.fixture
def folder(tmp_path):
    write_class_folders(tmp_path / "set", ["a", "b"], ("",), each=2)
    return tmp_path / "set"


@pytest.fixture
def settled(monkeypatch):
    """As a minute after the last change of the files."""
    monkeypatch.setattr(images, "_SETTLED_SECONDS", 0.05)
    return lambda: time.sleep(0.1)


def test_files_are_read_once_and_again_after_a_change(folder, settled, reads):
    settled()
    first = load_task(folder).fingerprint
    assert len(reads) == 4
    assert load_task(folder).fingerprint == first
    assert len(reads) == 4
    assert load_task(folder).take([0, 1]).fingerprint != first
    assert len(reads) == 6
    changed = folder / "a" / "1.png"
    times = changed.stat()
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # set back; the size is the same
    settled()
    second = load_task(folder).fingerprint
    assert second != first
    assert load_task(folder).fingerprint == second
    assert len(reads) == 10


def test_a_full_memory_is_no_broken_image(folder, monkeypatch):
    def full(self, number):
        raise MemoryError("128 GiB")

    monkeypatch.setattr(FileParts, "read", full)
    monkeypatch.setattr(images, "_decoded", lambda data: full(None, 0))
    with pytest.raises(MemoryError, match="128 GiB"):
        images.decode_images([b"png"], np.array(["a"]), "one")
    with pytest.raises(MemoryError, match="128 GiB"):
        load_task(folder).inputs(slice(0, 2))


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("TIFF", "<i4")])
def test_greys_of_16_bits_are_scaled_by_their_depth(kind, dtype):
    greys = np.array([[0, 255, 256, 257], [0x1234, 0x7FFF, 0x8000, 65535]])
    result = decoded(Image.fromarray(greys.astype(dtype)), kind)
    assert result[..., 0].tolist() == [[0, 0, 1, 1], [0x12, 0x7F, 0x80, 255]]
    assert (result == result[..., :1]).all()


def test_colours_of_16_bits_are_scaled_by_their_depth():
    lines = np.array([[0, 0x12FF, 65535], [257, 0x8000, 0x7FFF]], ">u2").reshape(1, 2, 3)
    chunks = {b"IHDR": struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(b"\0" + lines.tobytes())}
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in (chunks | {b"IEND": b""}).items():
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    assert images.decode_images([data], np.array(["a"]), "one").tolist() == [[[[0, 0x12, 255], [1, 0x80, 0x7F]]]]


@pytest.mark.parametrize("values", [np.float32([[0.5]]), np.int32([[1 << 16]]), np.int32([[-1]])])
def test_numbers_of_an_unknown_scale_are_refused(values):
    with pytest.raises(DataFileError, match="'a' does not decode: expected 8 or 16 bits a channel"):
        decoded(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "GIF")])
def test_what_is_transparent_lies_on_white(mode, kind):
    alpha = 255 if "P" in mode or kind == "GIF" else 128
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(0, 0, 0, 0), (100, 100, 100, alpha), (0, 0, 0, 255)])
    result = decoded(picture.quantize() if mode == "P" else picture.convert(mode), kind)
    middle = round((100 * alpha + 255 * (255 - alpha)) / 255)
    assert result.tolist() == [[[value] * 3 for value in (255, middle, 0)]]


def decoded(picture: Image.Image, kind: str) -> np.ndarray:
    file = io.BytesIO()
    picture.save(file, kind)
    return images.decode_images([file.getvalue()], np.array(["a"]), "one")[0]


def test_what_has_just_changed_is_not_remembered(folder, reads):
    assert load_task(folder).fingerprint == load_task(folder).fingerprint
    assert len(reads) == 8


def test_files_that_are_moved_or_touched_are_read_again_to_the_same_digest(folder, settled, reads):
    settled()
    first = load_task(folder).fingerprint
    os.utime(folder / "a" / "0.png")
    assert load_task(folder).fingerprint == first
    shutil.move(folder, folder.with_name("moved"))
    assert load_task(folder.with_name("moved")).fingerprint == first
    assert len(reads) == 12


def test_a_memory_that_is_torn_or_cannot_be_written_is_done_without(folder, settled, tmp_path, monkeypatch):
    settled()
    first = load_task(folder).fingerprint
    (memory,) = (tmp_path / "home" / "digests").iterdir()
    memory.write_text(memory.read_text()[:20])
    assert load_task(folder).fingerprint == first
    (tmp_path / "file").touch()
    monkeypatch.setenv("NML_HOME", str(tmp_path / "file"))
    assert load_task(folder).fingerprint == first


def test_shards_and_joined_tasks_are_remembered_too(folder, settled, tmp_path):
    write_class_folders(tmp_path / "other", ["a", "b"], ("",), each=1)
    pattern = write_shards(tmp_path / "shards", 2)
    settled()
    for make in (lambda: load_task(pattern), lambda: join_tasks([load_task(folder), load_task(tmp_path / "other")])):
        known = len(list((tmp_path / "home" / "digests").glob("*")))
        task = make()
        assert task.fingerprint == make().fingerprint
        assert len(list((tmp_path / "home" / "digests").glob("*"))) == known + 1
        assert task.image_data.digest() == plain(np.array(list(make().image_data), dtype=object))
