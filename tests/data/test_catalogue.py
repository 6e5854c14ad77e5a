"""The data sets of the study by name, each on a miniature in its own on-disk format; what is not there is explained."""

import hashlib
import json
import pickle
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torchvision
from scipy.io import savemat
from typer.testing import CliRunner

from nml_kit.cli import app
from nml_kit.data import dataset_rows, datasets_dir, load_task
from nml_kit.data.catalogue import DOMAINS, known_sets
from nml_kit.errors import DataFileError, MissingDependencyError, UnknownNameError
from tests.pictures import pixels, write_class_folders, write_picture


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324 (it is torchvision's)


def write_cifar(root, monkeypatch):
    """The md5 sums of the whole sets are in torchvision's classes: those of the miniature stand for them."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.stack([pixels(n, height=32, width=32) for n in range(6)])
    rows = images.transpose(0, 3, 1, 2).reshape(6, -1)
    contents = {
        "data_batch_1": {"data": rows[:4], "labels": [0, 1, 0, 1]},
        "test_batch": {"data": rows[4:], "labels": [1, 0]},
        "batches.meta": {"label_names": ["plane", "car"]},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", md5(folder / "data_batch_1")]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5(folder / "batches.meta")})
    return images


def test_cifar_in_its_batches(tmp_path, monkeypatch):
    images = write_cifar(tmp_path, monkeypatch)
    task = load_task("cifar10", root=tmp_path)
    np.testing.assert_array_equal(task.images, images)
    assert task.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert task.class_names == ("plane", "car")
    assert task.splits.tolist() == ["train"] * 4 + ["test"] * 2


def test_download_is_passed_on_and_a_changed_file_is_not_taken(tmp_path, monkeypatch):
    images = write_cifar(tmp_path / "theirs", monkeypatch)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "theirs" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setenv("NML_DATASETS", str(tmp_path / "mine"))
    with pytest.raises(DataFileError, match=r"'cifar10' in .*mine/cifar-10-batches-py, .*download=True.*NML_DATASETS"):
        load_task("cifar10")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        np.testing.assert_array_equal(load_task("cifar10", download=True).images, images)
        server.shutdown()
    (tmp_path / "mine" / "cifar-10-batches-py" / "test_batch").write_bytes(b"other")
    with pytest.raises(DataFileError, match="got Dataset not found or corrupted"):
        load_task("cifar10")


def test_svhn_calls_the_digit_ten_zero(tmp_path, monkeypatch):
    (tmp_path / "svhn").mkdir()
    images = np.stack([pixels(n, height=32, width=32) for n in range(5)])
    for split, rows, labels in (("train", slice(0, 3), [10, 1, 9]), ("test", slice(3, 5), [2, 10])):
        path = tmp_path / "svhn" / f"{split}_32x32.mat"
        savemat(path, {"X": images[rows].transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]})
        listed = torchvision.datasets.SVHN.split_list
        monkeypatch.setitem(listed, split, [*listed[split][:2], md5(path)])
    task = load_task("svhn", root=tmp_path)
    np.testing.assert_array_equal(task.images, images)
    assert task.labels.tolist() == [0, 1, 9, 2, 0]


def write_flowers(root, monkeypatch):
    folder = root / "flowers-102"
    for n in range(1, 8):
        write_picture(folder / "jpg" / f"image_{n:05d}.jpg", n, height=8 + n)
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 102, 1, 2, 102, 1])})
    savemat(folder / "setid.mat", {"trnid": [1, 2, 3], "valid": [4, 7], "tstid": [5, 6]})
    files = dict(torchvision.datasets.Flowers102._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (name, md5(folder / name))
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)
    return "flowers102", [0, 1, 101, 0, 0, 1, 101], 5, "flowers-102/jpg/image_00001.jpg"


def write_food(root, _):
    for split, number in (("train", 0), ("test", 1)):
        listed = {name: [f"{name}/{number}"] for name in ("pizza", "apple_pie")}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for name in listed:
            write_picture(root / "food-101" / "images" / name / f"{number}.jpg", number)
    return "food101", [1, 0, 1, 0], 2, "food-101/images/pizza/0.jpg"


def write_pets(root, _):
    folder = root / "oxford-iiit-pet"
    for split, names in (
        ("trainval", ["Abyssinian_1 1 1 1", "great_pyrenees_2 2 2 1"]),
        ("test", ["Abyssinian_7 1 1 1"]),
    ):
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for line in names:
            write_picture(folder / "images" / f"{line.split()[0]}.jpg", 3)
    return "oxford-pets", [0, 1, 0], 2, "oxford-iiit-pet/images/Abyssinian_1.jpg"


def write_cars(root, _):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura RL"], dtype=object)})
    kind = [("class", "O"), ("fname", "O")]
    for split, path, rows in (
        ("train", folder / "devkit" / "cars_train_annos.mat", [(2, "00001.jpg"), (1, "00002.jpg")]),
        ("test", folder / "cars_test_annos_withlabels.mat", [(1, "00001.jpg"), (2, "00002.jpg")]),
    ):
        savemat(path, {"annotations": np.array(rows, dtype=kind)})
        for _, name in rows:
            write_picture(folder / f"cars_{split}" / name, 4)
    return "stanford-cars", [1, 0, 0, 1], 2, "stanford_cars/cars_train/00001.jpg"


def write_aircraft(root, _):
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nA330 200\n")
    for split, lines in (("trainval", ["0001 A330 200", "0002 707-320"]), ("test", ["0003 A330 200"])):
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write_picture(folder / "images" / f"{line[:4]}.jpg", 5)
    return "fgvc-aircraft", [1, 0, 1], 2, "fgvc-aircraft-2013b/data/images/0001.jpg"


def write_dtd(root, _):
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        lines = [f"{name}/{name}_{number}.jpg" for name in ("banded", "woven")]
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write_picture(folder / "images" / line, number)
    return "dtd", [0, 1, 0, 1, 0, 1], 4, "dtd/dtd/images/banded/banded_0.jpg"


def write_rendered(root, _):
    write_class_folders(root / "rendered-sst2", ["positive", "negative"], ("train", "valid", "test"), each=1)
    return "rendered-sst2", [0, 1, 0, 1, 0, 1], 4, "test/negative/0.png"


def write_caltech(root, _):
    write_class_folders(root / "caltech101" / "101_ObjectCategories", ["emu", "ant", "BACKGROUND_Google"], ("",))
    return "caltech101", [0] * 4 + [1] * 4, 6, "ant/0.png"


def write_eurosat(root, _):
    write_class_folders(root / "eurosat" / "2750", ["River", "Forest"], ("",))
    return "eurosat", [0] * 4 + [1] * 4, 6, "Forest/0.png"


def write_resisc(root, _):
    write_class_folders(root / "resisc45", ["river", "airport"], ("",))
    return "resisc45", [0] * 4 + [1] * 4, 6, "airport/0.png"


WRITERS = (write_flowers, write_food, write_pets, write_cars, write_aircraft, write_dtd, write_rendered, write_caltech,
           write_eurosat, write_resisc)  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_sets_of_files_in_their_own_format(tmp_path, monkeypatch, write):
    name, labels, train_count, first = write(tmp_path, monkeypatch)
    task = load_task(name, root=tmp_path)
    assert task.labels.tolist() == labels
    assert (task.splits == "train").sum() == train_count
    assert task.ids[0] == first
    assert all(image.shape[2] == 3 for image in task.inputs(slice(None)))
    assert len(task.class_names) == max(task.num_classes, max(labels) + 1)


def test_files_of_torchvision_are_those_that_it_would_show(tmp_path, monkeypatch):
    write_flowers(tmp_path, monkeypatch)
    task = load_task("flowers102", root=tmp_path).select(split="test")
    theirs = torchvision.datasets.Flowers102(tmp_path, split="test")
    for row, (image, label) in enumerate(theirs):
        np.testing.assert_array_equal(task.inputs(slice(row, row + 1))[0], np.asarray(image))
        assert task.labels[row] == label


def test_pcam_stays_in_its_hdf5_files(tmp_path):
    (tmp_path / "pcam").mkdir()
    try:
        import h5py
    except ModuleNotFoundError:
        with pytest.raises(MissingDependencyError, match="pip install h5py"):
            load_task("pcam", root=tmp_path)
        pytest.skip("h5py is not installed")
    images = np.stack([pixels(n, height=96, width=96) for n in range(7)])
    labels = np.array([0, 1, 1, 0, 1, 0, 0], np.uint8)
    for part, rows in (("train", slice(0, 4)), ("valid", slice(4, 5)), ("test", slice(5, 7))):
        stem = tmp_path / "pcam" / f"camelyonpatch_level_2_split_{part}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = images[rows]
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = labels[rows, None, None, None]
    task = load_task("pcam", root=tmp_path)
    np.testing.assert_array_equal(task.images, images)
    np.testing.assert_array_equal(task.inputs(np.array([6, 0])), images[[6, 0]])
    assert task.labels.tolist() == labels.tolist()
    assert task.splits.tolist() == ["train"] * 5 + ["test"] * 2
    theirs = torchvision.datasets.PCAM(tmp_path, split="test")
    np.testing.assert_array_equal(task.inputs(slice(5, 6))[0], np.asarray(theirs[0][0]))
    assert len(task.fingerprint) == 64


def test_domainnet_needs_the_domains_that_are_asked_for(tmp_path):
    for domain in DOMAINS[:5]:
        for split in ("train", "test"):
            file = f"{domain}/airplane/{split}.jpg"
            write_picture(tmp_path / "domainnet" / file, 1)
            (tmp_path / "domainnet" / f"{domain}_{split}.txt").write_text(f"{file} 0\n")
    assert set(load_task("domainnet:real,clipart", root=tmp_path).domains) == {"real", "clipart"}
    with pytest.raises(DataFileError, match=r"Expected the split file .*sketch_train\.txt"):
        load_task("domainnet", root=tmp_path)
    with pytest.raises(UnknownNameError, match="Unknown domain 'skech': did you mean 'sketch'"):
        load_task("domainnet:skech", root=tmp_path)


def test_every_image_set_that_is_not_there_says_where_it_should_be(tmp_path):
    for known in [known for known in known_sets().values() if not known.hub]:
        with pytest.raises(DataFileError, match=f"Expected data set '{known.name}' in .*{known.folder}"):
            load_task(known.name, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Unknown data set 'cifar-10': did you mean 'cifar10'"):
        load_task("cifar-10")


def test_the_list_says_what_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("NML_DATASETS", str(tmp_path))
    assert datasets_dir() == tmp_path
    write_resisc(tmp_path, None)
    rows = {row["name"]: row for row in dataset_rows()}
    assert set(known_sets()) < set(rows)
    assert {name for name, row in rows.items() if row["present"] and row["use"] != "shipped"} == {"resisc45"}
    assert sum(row["use"] == "ID" for row in rows.values()) == 14
    assert rows["digits"]["present"]
    told = CliRunner().invoke(app, ["datasets", "--json"])
    assert json.loads(told.stdout) == list(rows.values())
    table = CliRunner().invoke(app, ["datasets", "--root", str(tmp_path / "none")]).stdout
    assert all(name in table for name in ("resisc45", "glue:mnli", "CC BY-SA 4.0", "text OOD"))
    assert all(row["licence"] and row["citation"] and row["splits"] and row["classes"] >= 2 for row in rows.values())


@pytest.mark.parametrize(
    ("package", "source", "extra"),
    [
        ("braceexpand", "in-{0..1}.tar", "'nml_kit\\[shards]'"),
        ("datasets", "hf:some/thing", "'nml_kit\\[hub]'"),
        ("torchvision", "food101", "'nml_kit\\[models]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, package, source, extra):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "food-101").mkdir()
    with pytest.raises(MissingDependencyError, match=extra):
        load_task(source, root=tmp_path)
