"""Rebuild the shipped benchmark: fetch packages, draw, split, remove what leaks, write Parquet and the data sheet.

pip install -r data/requirements.txt && python data/build.py
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from assemble import DRAWING, PHOTO, Sample, by_class, cap, rank, remove_leaks, split_all, split_sizes, thin
from emoji import drawings, read_emoji
from icons import Icon, draw_icons
from packages import PACKAGES, read_json, unpack
from render import pad, upscale
from sheet import licenses_of, source_table, write_sheet
from sklearn.datasets import load_digits
from tables import write_task

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "data"  # beside data/, which the wheel ships whole
FASHION = ("T-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TITLES = {
    "icons-pretrain": "Icons: pre-training concepts, with captions",
    "icons": "Icons: held-out concepts in four styles",
    "icons-rare": "Icons: further held-out concepts",
    "icons-badges": "Icons with a small mark: which mark?",
    "emoji": "Emoji classes drawn by several vendors",
    "fashion": "Fashion-MNIST, a balanced part",
    "digits": "Handwritten digits of scikit-learn",
    "emoji-text": "Emoji classes from names, keywords and short codes",
}
BOUNDS = {name: PHOTO if name in {"fashion", "digits"} else DRAWING for name in TITLES if name != "emoji-text"}


def icon_sample(icon: Icon) -> Sample:
    """Turn a drawn icon into a row."""
    name = f"{icon.prefix}/{icon.name}"
    caption = f"{icon.shown.words}, {icon.style} icon"
    return Sample(icon.shown.label, caption, icon.style, f"iconify:{icon.prefix}", name, icon.shown.thing, icon.pixels)


def split_by_thing(samples: list[Sample], seen: set[str], test_share: float) -> list[Sample]:
    """Put all badges of an object in one split: in train when the object is a class elsewhere, else by chance."""
    chosen = []
    for sample in samples:
        drawn = int(rank(sample.identity)[:8], 16) / 2**32
        split = "test" if drawn < test_share and sample.identity not in seen else "train"
        chosen.append(replace(sample, split=split))
    return chosen


def icon_tasks(package: Path, config: dict) -> dict[str, list[Sample]]:
    """Draw the icon tasks, thinned and split, not yet capped."""
    tasks: dict[str, list[Sample]] = {name: [] for name in TITLES if name.startswith("icons")}
    for icon in draw_icons(package, config):
        tasks[icon.shown.task].append(icon_sample(icon))
    tasks = {name: thin(samples) for name, samples in tasks.items()}
    concepts = {concept for members in config["classes"].values() for concept in members}
    badges = split_by_thing(tasks.pop("icons-badges"), concepts, 0.4)
    shares = {"icons-pretrain": 0.2, "icons": 0.3, "icons-rare": 0.3}
    split = {
        name: split_all([replace(s, identity=s.id) for s in tasks[name]], DRAWING, shares[name]) for name in shares
    }
    return split | {"icons-badges": badges}


def emoji_tasks(iconify: Path, emojibase: Path, config: dict) -> dict[str, list[Sample]]:
    """Draw the emoji task and collect the texts: an identity is in one split for all vendors and texts."""
    everything = sorted(read_emoji(emojibase, config["emoji_classes"]), key=lambda one: rank(one.code))
    flags = [one for one in everything if one.label == "flag"][: config["flags"]]
    identities = [one for one in everything if one.label != "flag"] + flags
    drawn = [
        Sample(one.label, one.name, vendor, f"iconify:{vendor}", f"{one.code}/{vendor}", one.code, pixels)
        for vendor in config["emoji_vendors"]
        for one, pixels in drawings(iconify, vendor, identities)
        if f"{one.code}/{vendor}" not in config["emoji_wrong"]
    ]
    pictures = split_all(drawn, DRAWING, 0.2)
    split_of = {sample.identity: sample.split for sample in pictures}
    texts = [
        Sample(
            one.label,
            text,
            source,
            f"emojibase:{source}",
            f"{one.code}/{source}/{row}",
            one.code,
            None,
            split_of[one.code],
        )
        for one in identities
        if one.code in split_of
        for source, values in one.texts.items()
        for row, text in enumerate(values)
    ]
    tested = {sample.caption for sample in texts if sample.split == "test"}
    kept = [sample for sample in texts if sample.split == "test" or sample.caption not in tested]
    return {"emoji": pictures, "emoji-text": kept}


def fashion_task(package: Path, pool: int = 2600, tests: int = 80) -> Iterator[Sample]:
    """Take a fixed pseudo-random pool of every class, its first images as test."""
    for label, name in enumerate(FASHION):
        rows = read_json(package / "src" / "clothes" / f"{label}.json")["data"]
        good = sorted(
            (row for row, values in enumerate(rows) if len(values) == 28 * 28), key=lambda row: rank(f"{label}/{row}")
        )
        for order, row in enumerate(good[:pool]):
            pixels = pad(np.array(rows[row], dtype=np.uint8).reshape(28, 28))
            key = f"fashion/{label}/{row:04d}"
            split = "test" if order < tests else "train"
            yield Sample(name, f"a photo of a {name}", "photo", "fashion-mnist:fashion-mnist", key, key, pixels, split)


def digits_task() -> list[Sample]:
    """Take all 1,797 digits, enlarged to 32×32."""
    digits = load_digits()
    samples = []
    for row, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        pixels = upscale(np.rint(picture * 255 / 16).astype(np.uint8))
        key = f"digits/{row:04d}"
        samples.append(
            Sample(str(label), f"handwritten digit {label}", "scan", "scikit-learn:digits", key, key, pixels)
        )
    return split_all(samples, PHOTO, 0.2)


def capped(tasks: dict[str, list[Sample]], config: dict) -> dict[str, list[Sample]]:
    """Balance the tasks: at most so many per class (and style); too few of a class is an error."""
    final = dict(tasks)
    for task, rule in config["most"].items():
        final[task] = cap(tasks[task], {"train": rule["train"], "test": rule["test"]}, tuple(rule["per"]))
    for task, (train, test) in config["fewest"].items():
        counts = {label: split_sizes(members) for label, members in by_class(final[task]).items()}
        poor = [f"{label} {have}" for label, have in counts.items() if have[0] < train or have[1] < test]
        if poor:
            raise SystemExit(f"{task}: expected at least {train} + {test} images of every class, got {', '.join(poor)}")
    return final


def build(packages: Path, out: Path) -> None:
    """Build everything into `out`."""
    config = yaml.safe_load((HERE / "concepts.yaml").read_text(encoding="utf-8"))
    iconify, emojibase, clothes = (unpack(name, packages, CACHE) for name in PACKAGES)
    tasks = icon_tasks(iconify, config) | emoji_tasks(iconify, emojibase, config)
    tasks |= {"fashion": list(fashion_task(clothes)), "digits": digits_task()}
    images, removed = remove_leaks({name: rows for name, rows in tasks.items() if name in BOUNDS}, BOUNDS)
    typer.echo(f"train images removed because a test image is alike: {dict(removed)}")
    final = capped(tasks | images, config)
    sources = source_table(iconify, final)
    for name in TITLES:
        write_task(out / f"{name}.parquet", TITLES[name], licenses_of(final[name], sources), final[name])
        typer.echo(f"{name}: {len(by_class(final[name]))} classes, train and test {split_sizes(final[name])}")
    write_sheet(out, {name: final[name] for name in TITLES}, sources, removed)


def main(
    packages: Annotated[Path, typer.Option(help="Folder of the packages' tarballs; missing ones are fetched.")] = CACHE,
    out: Annotated[Path, typer.Option(help="Folder for the Parquet files and tables.")] = HERE,
) -> None:
    """Rebuild the shipped data."""
    started = time.perf_counter()
    build(packages.resolve(), out)
    typer.echo(f"done after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
