"""ImageNet's variants have its labels, whatever their folders are called; joined, they are domains of one task."""

from dataclasses import replace

import numpy as np
import pytest

from nml_kit.data import load_task
from nml_kit.data.load import join_tasks
from nml_kit.errors import DataFileError, InvalidInputError
from tests.pictures import write_class_folders, write_picture

WNIDS = [f"n0{number}" for number in (1440764, 1443537, 1530575, 1531178, 1532829, 1534433, 1537544, 1558993)]


@pytest.fixture
def imagenet(tmp_path):
    write_class_folders(tmp_path / "imagenet", WNIDS, ("train", "val"), each=2)
    write_class_folders(
        tmp_path / "imagenetv2-matched-frequency-format-val", [str(n) for n in range(len(WNIDS))], ("",), each=1
    )
    write_class_folders(tmp_path / "imagenet-r", [WNIDS[6], WNIDS[2]], ("",), each=3)
    write_class_folders(tmp_path / "imagenet-a", [WNIDS[7]], ("",), each=2)
    write_class_folders(tmp_path / "sketch", WNIDS, ("",), each=1)
    return tmp_path


def test_variants_of_imagenet_have_its_labels(imagenet):
    base = load_task("imagenet", root=imagenet)
    assert base.class_names == tuple(WNIDS)
    expected = {"imagenet-v2": list(range(8)), "imagenet-r": [2] * 3 + [6] * 3, "imagenet-a": [7, 7],
                "imagenet-sketch": list(range(8))}  # fmt: skip
    for name, labels in expected.items():
        task = load_task(name, root=imagenet)
        assert task.labels.tolist() == labels
        assert task.class_names == base.class_names
        assert set(task.splits) == {"test"}
        assert [one.split("/")[0] for one in task.ids] == [
            str(label) if name == "imagenet-v2" else WNIDS[label] for label in labels
        ]


def test_folders_of_v2_are_numbers_not_texts(tmp_path):
    wnids = [f"n{number:08d}" for number in range(12)]
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "wnids.txt").write_text("\n".join(reversed(wnids)))
    folder = "imagenetv2-matched-frequency-format-val"
    write_class_folders(tmp_path / folder, [str(number) for number in range(12)], ("",), each=1)
    task = load_task("imagenet-v2", root=tmp_path)
    assert {int(one.split("/")[0]): label for one, label in zip(task.ids, task.labels.tolist(), strict=True)} == {
        number: number for number in range(12)
    }
    assert task.captions[task.labels == 10].tolist() == ["n00000010"]


def test_a_folder_that_is_no_class_of_imagenet_and_a_missing_list_are_named(imagenet):
    write_picture(imagenet / "imagenet-a" / "n99999999" / "x.png", 1)
    with pytest.raises(DataFileError, match=r"WordNet ids of ImageNet's classes, got 'n99999999'"):
        load_task("imagenet-a", root=imagenet)
    (imagenet / "imagenet").rename(imagenet / "gone")
    with pytest.raises(DataFileError, match=r"or its WordNet ids in .*imagenet/wnids\.txt"):
        load_task("imagenet-r", root=imagenet)


def test_imagenet_and_variants_are_domains_of_one_task(imagenet):
    joined = load_task("imagenet+imagenet-r", root=imagenet)
    base, other = (load_task(name, root=imagenet) for name in ("imagenet", "imagenet-r"))
    assert set(joined.domains) == {"imagenet", "imagenet-r"}
    np.testing.assert_array_equal(joined.select(domains=["imagenet-r"]).labels, other.labels)
    np.testing.assert_array_equal(joined.images, np.concatenate([base.images, other.images]))
    assert joined.take(joined.domains == "imagenet-r").fingerprint != other.fingerprint  # its ids have its name
    assert joined.fingerprint == load_task("imagenet+imagenet-r", root=imagenet).fingerprint


def test_only_tasks_of_the_same_classes_and_kind_are_joined(imagenet, task):
    base = load_task("imagenet", root=imagenet)
    with pytest.raises(InvalidInputError, match="Expected the same classes in 'imagenet' and 'quadrants', got 8 and 4"):
        join_tasks([base, task])
    with pytest.raises(InvalidInputError, match="Expected tasks of several names"):
        join_tasks([base, base])


def test_files_and_pixels_are_joined_as_they_are(imagenet, task):
    write_class_folders(imagenet / "more", list(task.class_names), ("",), each=1)
    files = load_task(imagenet / "more")
    joined = join_tasks([task, files])
    assert joined.inputs(slice(0, 2)).shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(joined.take(joined.domains == "more").images, files.images)
    assert joined.fingerprint == join_tasks([task, files]).fingerprint
    twice = join_tasks([task, replace(task, name="again")])
    assert isinstance(twice.image_data, np.ndarray)
    np.testing.assert_array_equal(twice.images, np.concatenate([task.images, task.images]))
