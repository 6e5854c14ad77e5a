"""Noise records on disk: the same bytes twice, the same record back, clear errors."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nml_kit.data import load_noise, noise_fingerprint, save_noise
from nml_kit.errors import CorruptEntryError, DataFileError, InvalidInputError
from nml_kit.noise import CaptionNoise, LabelNoise, inject_caption_noise, inject_label_noise
from nml_kit.store import read_tensors, write_json, write_tensors


def label_noise(seed: int = 0) -> LabelNoise:
    return inject_label_noise(np.arange(30) % 5, 0.3, num_classes=5, kind="asymmetric", seed=seed)


def caption_noise(seed: int = 0) -> CaptionNoise:
    return inject_caption_noise(["a", "", "été 🐈", "a\x00", "line\nbreak", "a"], 0.7, seed=seed)


@pytest.fixture(params=[label_noise, caption_noise], ids=["labels", "captions"])
def record(request) -> LabelNoise | CaptionNoise:
    return request.param()


def assert_same(left, right):
    assert type(left) is type(right)
    for field in fields(left):
        one, other = getattr(left, field.name), getattr(right, field.name)
        assert type(one) is type(other)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_record_comes_back_and_saves_to_the_same_bytes(record, tmp_path):
    save_noise(record, tmp_path / "first")
    loaded = load_noise(tmp_path / "first")
    assert_same(loaded, record)
    save_noise(loaded, tmp_path / "second")
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    assert set(bytes_of(tmp_path / "first")) == {"noise.safetensors", "noise.json"}


def test_another_process_writes_the_same_bytes(tmp_path):
    save_noise(label_noise(), tmp_path / "here")
    code = (
        "import sys, numpy as np; from nml_kit.noise.labels import inject_label_noise as inject; "
        "from nml_kit.data.records import save_noise; "
        "save_noise(inject(np.arange(30) % 5, 0.3, num_classes=5, kind='asymmetric', seed=0), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True)
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "there")


@settings(deadline=None)
@given(st.lists(st.text(max_size=5), min_size=2, max_size=8, unique=True))
def test_any_texts_come_back(tmp_path_factory, captions):
    directory = tmp_path_factory.mktemp("record")
    record = inject_caption_noise(captions, 1, seed=0)
    save_noise(record, directory)
    assert_same(load_noise(directory), record)


def test_settings_are_readable(tmp_path):
    record = label_noise()
    save_noise(record, tmp_path)
    about = json.loads((tmp_path / "noise.json").read_text("utf-8"))
    assert about == {
        "record": "LabelNoise",
        "format": 1,
        "fingerprint": noise_fingerprint(record),
        "settings": {"requested_ratio": 0.3, "realised_ratio": 0.3, "kind": "asymmetric", "seed": 0},
    }


def test_fingerprint_covers_every_label_and_setting():
    record = label_noise()
    assert noise_fingerprint(record) == noise_fingerprint(label_noise())
    changed = record.noisy.copy()
    changed[3] ^= 1
    others = [
        label_noise(seed=1),
        LabelNoise(**vars(record) | {"noisy": changed}),
        LabelNoise(**vars(record) | {"kind": "uniform"}),
        LabelNoise(**vars(record) | {"seed": 5}),
        caption_noise(),
        caption_noise(seed=1),
    ]
    assert len({noise_fingerprint(other) for other in [record, *others]}) == 7


@pytest.mark.parametrize("name", ["noise.json", "noise.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_missing_or_truncated_file_is_named(record, tmp_path, name, damage):
    save_noise(record, tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:0] if damage == "empty" else content[:-20])
    if damage == "missing":
        (tmp_path / name).unlink()
    with pytest.raises(DataFileError, match=rf"Expected a .* file at .*{name}, got: .*make it again"):
        load_noise(tmp_path)


@pytest.mark.parametrize(
    "foreign", [[], 3, None, {}, {"record": "Other"}, {"record": []}, {"record": "LabelNoise", "settings": 1}]
)
def test_foreign_json_is_refused(record, tmp_path, foreign):
    save_noise(record, tmp_path)
    write_json(tmp_path / "noise.json", foreign)
    with pytest.raises(DataFileError, match=r"Expected a noise record in .*got other content .*`save_noise`"):
        load_noise(tmp_path)


def test_foreign_tensors_are_refused(record, tmp_path):
    save_noise(record, tmp_path)
    write_tensors(tmp_path / "noise.safetensors", {"weight": np.ones(3)})
    with pytest.raises(DataFileError, match=r"Expected a noise record in .*got other content .*`save_noise`"):
        load_noise(tmp_path)


def test_changed_content_is_found(record, tmp_path):
    save_noise(record, tmp_path)
    arrays = read_tensors(tmp_path / "noise.safetensors")
    write_tensors(tmp_path / "noise.safetensors", arrays | {"mask": ~arrays["mask"]})
    message = f"Expected noise record .* with fingerprint {noise_fingerprint(record)}, got .*Save the record again"
    with pytest.raises(CorruptEntryError, match=message):
        load_noise(tmp_path)


def test_files_of_two_records_do_not_mix(tmp_path):
    """A writer killed between its two files leaves the new arrays beside the old settings."""
    save_noise(label_noise(seed=1), tmp_path)
    old = (tmp_path / "noise.json").read_bytes()
    save_noise(label_noise(seed=2), tmp_path)
    (tmp_path / "noise.json").write_bytes(old)
    with pytest.raises(CorruptEntryError, match="fingerprint"):
        load_noise(tmp_path)


def test_only_records_are_saved(tmp_path):
    with pytest.raises(InvalidInputError, match="Expected a LabelNoise or CaptionNoise record, got dict"):
        save_noise({"clean": [1]}, tmp_path)
    assert list(tmp_path.glob("noise*")) == []
