"""Folders of images: classes, splits, ids and fingerprints; what is read, and when."""

import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from nml_kit.backbones import load_backbone
from nml_kit.data import load_task
from nml_kit.data.load import join_tasks
from nml_kit.data.task import Task
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.features import extract_features, is_extracted
from nml_kit.store import Store
from tests.pictures import pixels, write_class_folders, write_picture


def in_memory(task: Task) -> Task:
    """The same task with its encoded files in an object array of bytes."""
    column = np.empty(len(task), dtype=object)
    column[:] = list(task.image_data)
    return replace(task, image_data=column)


@pytest.fixture
def folder(tmp_path):
    write_class_folders(tmp_path / "pets", ["dog", "cat"], ("train", "val"))
    return tmp_path / "pets"


def test_classes_and_labels_are_those_of_torchvision(folder):
    task = load_task(folder)
    for split, use in (("train", "train"), ("val", "test")):
        theirs = ImageFolder(folder / split)
        ours = task.select(split=use)
        assert ours.class_names == tuple(theirs.classes) == ("cat", "dog")
        assert ours.labels.tolist() == theirs.targets
        expected = np.stack([np.asarray(image) for image, _ in theirs])
        np.testing.assert_array_equal(ours.images, expected)
    assert task.ids[0] == "train/cat/0.png"
    assert task.name == "pets"


def test_validation_images_are_more_to_train_on_where_there_is_a_test_split(tmp_path):
    write_class_folders(tmp_path, ["a", "b"], ("train", "val", "test"), each=2)
    task = load_task(tmp_path)
    uses = {name.split("/")[0]: split for name, split in zip(task.ids.tolist(), task.splits.tolist(), strict=True)}
    assert uses == {"train": "train", "val": "train", "test": "test"}


def test_without_splits_a_quarter_of_each_class_is_for_test_wherever_the_files_lie(tmp_path):
    write_class_folders(tmp_path / "one", ["train", "car"], ("",), each=8)  # a train is a class here
    task = load_task(tmp_path / "one")
    assert task.class_names == ("car", "train")
    assert np.bincount(task.labels[task.splits == "test"]).tolist() == [2, 2]
    shutil.move(tmp_path / "one", tmp_path / "two")
    moved = load_task(tmp_path / "two")
    np.testing.assert_array_equal(moved.splits, task.splits)
    np.testing.assert_array_equal(moved.ids, task.ids)


def test_the_fingerprint_is_that_of_the_same_bytes_in_memory_and_of_the_content_alone(folder, tmp_path):
    task = load_task(folder)
    assert task.fingerprint == in_memory(task).fingerprint
    shutil.copytree(folder, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "val" / "cat" / "0.png", (1, 1))
    assert load_task(tmp_path / "elsewhere").fingerprint == task.fingerprint
    changed = tmp_path / "elsewhere" / "val" / "cat" / "0.png"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert load_task(tmp_path / "elsewhere").fingerprint != task.fingerprint


def test_shipped_tasks_keep_their_fingerprints():
    """The reference results depend on them."""
    assert load_task("digits").fingerprint == "fd5c8c0cab70acb0cbae15ba716431e7d206deadd98b0f6522a56e313a74aa03"
    assert load_task("emoji-text").fingerprint == "11adf22a27e2d8b03ab65e6e09984f62a86d34aff5e712f1222b52e5ea2e4429"


def test_nothing_is_read_before_pixels_are_asked_for(folder):
    (folder / "train" / "cat" / "3.png").write_bytes(b"no picture")
    task = load_task(folder)
    kept = task.take(task.splits == "test")
    assert len(kept.images) == 8
    with pytest.raises(DataFileError, match=r"sample 'train/cat/3.png' \(.*pets/train/cat/3.png\) does not decode"):
        task.inputs(slice(0, 8))
    (folder / "val" / "dog" / "1.png").unlink()
    with pytest.raises(DataFileError, match=r"Expected an image in .*val/dog/1.png, got .*No such file"):
        _ = kept.fingerprint


def test_rows_are_chosen_by_masks_slices_and_positions(folder):
    task = load_task(folder)
    positions = np.array([9, 2, 2 + 9])
    everything = task.images
    np.testing.assert_array_equal(task.inputs(positions), everything[positions])
    np.testing.assert_array_equal(task.inputs(slice(3, 7)), everything[3:7])
    mask = task.labels == 1
    np.testing.assert_array_equal(task.take(mask).take(np.array([1, 0])).images, everything[mask][[1, 0]])
    assert isinstance(task.image_data[3], bytes)


def test_images_of_several_sizes_come_as_they_are(tmp_path):
    write_picture(tmp_path / "a" / "0.png", 0, height=5, width=9)
    write_picture(tmp_path / "a" / "deeper" / "1.png", 1, height=5, width=9)
    write_picture(tmp_path / "b" / "2.PNG", 2, height=7, width=6)
    task = load_task(tmp_path)
    inputs = task.inputs(slice(None))
    assert inputs.dtype == object
    assert [image.shape for image in inputs] == [(5, 9, 3), (5, 9, 3), (7, 6, 3)]
    np.testing.assert_array_equal(inputs[2], pixels(2, height=7, width=6))
    assert task.inputs(slice(0, 2)).shape == (2, 5, 9, 3)
    with pytest.raises(DataFileError, match=r"expected images of one size.*take `inputs"):
        _ = task.images


def test_a_class_without_images_and_a_folder_without_classes_are_named(folder, tmp_path):
    (folder / "train" / "eel").mkdir()
    with pytest.raises(DataFileError, match=r"train/eel: expected images .* of class 'eel', got none"):
        load_task(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFileError, match=r"empty: expected one folder of images for each class, got none"):
        load_task(tmp_path / "empty")


def write_domains(root, domains=("real", "sketch")):
    for domain in domains:
        for split, numbers in (("train", (0, 1)), ("test", (2,))):
            lines = []
            for label, class_name in enumerate(("airplane", "zebra")):
                for number in numbers:
                    file = f"{domain}/{class_name}/{domain}_{label}_{number}.jpg"
                    write_picture(root / file, 10 * label + number)
                    lines.append(f"{file} {label}")
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")


def test_domains_come_from_their_split_files(tmp_path):
    write_domains(tmp_path)
    task = load_task(tmp_path)
    assert task.class_names == ("airplane", "zebra")
    chosen = task.select(split="test", domains=["sketch"])
    assert chosen.ids.tolist() == ["sketch/airplane/sketch_0_2.jpg", "sketch/zebra/sketch_1_2.jpg"]
    assert chosen.labels.tolist() == [0, 1]
    assert chosen.images.shape == (2, 8, 8, 3)


def test_a_missing_split_file_a_wrong_line_and_a_label_of_two_classes_are_named(tmp_path):
    write_domains(tmp_path)
    (tmp_path / "real_test.txt").unlink()
    with pytest.raises(DataFileError, match=r"Expected the split file .*real_test\.txt"):
        load_task(tmp_path)
    for line, message in (
        ("real/airplane/x.jpg", "line 1: expected a line as 'real/airplane/x.jpg 0'"),
        ("../../x/y.jpg 0", "line 1: expected a line as"),
        ("real/car/x.jpg 0", "expected label 0 for 'airplane' as before, got 'car'"),
    ):
        (tmp_path / "real_test.txt").write_text(line + "\n")
        with pytest.raises(DataFileError, match=message):
            load_task(tmp_path)


def test_paths_of_nothing_and_of_other_files_are_refused(tmp_path):
    with pytest.raises(DataFileError, match=r"Expected a data set at .*nowhere, but nothing is there"):
        load_task(tmp_path / "nowhere")
    (tmp_path / "x.zip").touch()
    with pytest.raises(InvalidInputError, match=r"ends in \.parquet, \.csv, \.tsv or \.tar, or a folder, got .*x\.zip"):
        load_task(tmp_path / "x.zip")


def test_a_split_without_class_folders_is_not_left_out(folder):
    """As the validation images of ImageNet come."""
    for file in (folder / "val").rglob("*.png"):
        file.rename(folder / "val" / f"{file.parent.name}-{file.name}")
    for name in ("cat", "dog"):
        (folder / "val" / name).rmdir()
    with pytest.raises(DataFileError, match=r"pets/val: expected one folder of images for each class, got none; sort"):
        load_task(folder)


def test_a_flat_folder_of_unlabelled_test_images_is_left_out(folder):
    """As those of ImageNet come."""
    write_picture(folder / "test" / "0.png", 7)
    task = load_task(folder)
    assert {one.split("/")[0] for one in task.ids[task.splits == "test"]} == {"val"}


def write_files(root, *files):
    for number, file in enumerate(files):
        write_picture(root / file, number)


@pytest.mark.parametrize(
    ("train", "other", "use"),
    [("Train", "Test", "test"), ("TRAIN", "valid", "test"), ("training_set", "test_set", "test"),
     ("trainset", "Validation", "test"), ("training", "dev", "test"), ("train-set", "testing", "test")],
)  # fmt: skip
def test_splits_are_known_whatever_their_case_and_form(tmp_path, train, other, use):
    write_class_folders(tmp_path, ["cat", "dog"], (train, other), each=1)
    task = load_task(tmp_path)
    assert task.class_names == ("cat", "dog")
    uses = {one.split("/")[0]: split for one, split in zip(task.ids.tolist(), task.splits.tolist(), strict=True)}
    assert uses == {train: "train", other: use}


@pytest.mark.parametrize(
    ("above", "splits", "domains"),
    [
        (("art", "photo"), ("a quarter",), ("art", "photo")),
        (("train/art", "train/photo", "test/art", "test/photo"), ("train", "test"), ("art", "photo")),
        (("art/train", "photo/train", "art/test", "photo/test"), ("train", "test"), ("art", "photo")),
        (("art/images", "photo/images"), ("a quarter",), ("art", "photo")),
        (("pets/art", "pets/photo"), ("a quarter",), ("art", "photo")),
        (("pets",), ("a quarter",), ("all",)),
        (("pets/train", "pets/val"), ("train", "val"), ("all",)),
    ],
)
def test_domains_and_splits_above_the_classes_are_told_apart(tmp_path, above, splits, domains):
    write_class_folders(tmp_path, ["cat", "dog", "owl"], above, each=4)
    task = load_task(tmp_path)
    assert task.class_names == ("cat", "dog", "owl")
    assert len(task) == 12 * len(above)
    for one, label, domain, split in zip(task.ids, task.labels, task.domains, task.splits, strict=True):
        parts = one.split("/")
        assert parts[-2] == task.class_names[label]
        assert domain in parts or domains == ("all",)
        assert split == ("train" if "train" in parts else "test") or splits == ("a quarter",)
    assert set(task.domains) == set(domains)
    assert (task.splits == "test").mean() == (0.25 if splits == ("a quarter",) else 0.5)


def test_domains_may_lack_some_classes(tmp_path):
    write_class_folders(tmp_path, ["cat", "dog"], ("art", "photo"))
    write_picture(tmp_path / "art" / "owl" / "0.png", 1)
    task = load_task(tmp_path)
    assert task.class_names == ("cat", "dog", "owl")
    assert set(task.domains[task.labels == 2]) == {"art"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["bus/0.png", "car/0.png", "train/steam/0.png"], "expected splits or classes, got train beside bus, car; lay"),
        (["car/0.png", "train/0.png", "test/0.png"], "got test, train beside car; lay them out as CLASS/"),
        (["train/0.png", "val/cat/0.png", "val/dog/0.png"], "/train: expected one folder of images for each class"),
        (["train/0.png", "test/0.png"], "/test: expected one folder of images for each class"),
        (["train/a/0.png", "test/a/0.png", "val/0.png"], "/val: expected one folder of images for each class"),
        (["a/cat/0.png", "a/dog/0.png", "b/owl/0.png", "b/elk/0.png"], "got a with cat, dog beside b; lay them out"),
        (["a/cat/0.png", "a/dog/0.png", "b/0.png"], "got a with cat, dog beside b; lay them out as CLASS/"),
        (["cat/train/0.png", "cat/test/0.png", "dog/train/0.png"], "cat/test: expected one folder of images for each"),
        (["train/n1/0.png", "train/n2/0.png", "val/images/0.png"], "same class folders .*, got n1, … and images, …"),
    ],
)
def test_folders_that_can_be_read_in_several_ways_are_refused(tmp_path, files, message):
    write_files(tmp_path, *files)
    with pytest.raises(DataFileError, match=message):
        load_task(tmp_path)


def test_what_was_read_and_what_was_left_out_is_said(folder, caplog):
    caplog.set_level(logging.INFO)
    write_files(folder.parent, "__MACOSX/0.png", "pets/.git/0.png", "pets/train/cat/.ipynb_checkpoints/0.png")
    write_files(folder, "test/0.png", "train/eel/0.png", "train/loose.png")
    (folder / "annotations").mkdir()
    task = load_task(folder.parent)  # the wrapper is entered
    assert task.class_names == ("cat", "dog", "eel")
    assert task.fingerprint == load_task(folder).fingerprint
    said = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert said == {
        ("INFO", f"Left out {folder.parent / '__MACOSX'}: hidden."),
        ("INFO", f"Left out {folder / '.git'}: hidden."),
        ("WARNING", f"Left out annotations in {folder}: without images."),
        ("WARNING", f"Left out test in {folder}: without class folders, which val has."),
        ("WARNING", f"Left out 1 images in {folder / 'train'}, such as loose.png: they are in no class folder."),
        ("WARNING", f"Only in train or only in test of {folder}: eel (1 classes)."),
        ("INFO", f"Read 9 train and 8 test images of 3 classes and 1 domains below {folder}; "
                 "train is train, val is test."),
    }  # fmt: skip


def test_a_train_among_classes_is_said(tmp_path, caplog):
    write_files(tmp_path, "car/0.png", "train/0.png")
    assert load_task(tmp_path).class_names == ("car", "train")
    assert f"Read train in {tmp_path} as a class, as the folders beside it; rename it" in caplog.text


def test_class_folders_beside_lists_of_other_things_are_read(tmp_path):
    write_class_folders(tmp_path, ["cat", "dog"], ("",))
    (tmp_path / "meta_train.txt").write_text("cat/0")
    assert load_task(tmp_path).class_names == ("cat", "dog")


def test_moving_files_keeps_stored_features_and_a_changed_byte_does_not(folder, store):
    """The task is found again by what it holds, so nothing is extracted twice, and nothing stale is taken."""
    backbone = load_backbone("compact-resnet")
    task = load_task(folder)
    features = extract_features(task, backbone, store=store, progress=False)
    expected = extract_features(in_memory(task), backbone, store=Store(store.root / "other"), progress=False)
    np.testing.assert_array_equal(features.values, expected.values)
    shutil.move(folder, folder.with_name("moved"))
    assert is_extracted(load_task(folder.with_name("moved")), backbone, store=store)
    write_picture(folder.with_name("moved") / "val" / "cat" / "0.png", 99)
    assert not is_extracted(load_task(folder.with_name("moved")), backbone, store=store)


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
    (imagenet / "imagenet" / "val" / "logs").mkdir()
    with pytest.raises(DataFileError, match=r"imagenet/val: expected folders named by WordNet ids, got 'logs'; move"):
        load_task("imagenet-r", root=imagenet)
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
