"""Icons: which are used, what they show and how they are drawn (style)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from packages import ALLOWED_LICENSES, read_json
from render import downsample, is_blank, render, solid_share, svg_of

DUOTONE_SETS = {"icon-park-twotone", "duo-icons", "uim"}
VARIANT_WORDS = {"one", "two", "three", "four", "five", "a", "b", "c", "s", "r"}
SOLID_ABOVE = 0.05


@dataclass(frozen=True)
class Shown:
    """What an icon's name says: its task, its class, the object it belongs to, and the name in plain words."""

    task: str
    label: str
    thing: str
    words: str


@dataclass(frozen=True)
class Icon:
    """One drawn icon: its set, name, meaning, style and pixels (32, 32, 3)."""

    prefix: str
    name: str
    shown: Shown
    style: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Vocabulary:
    """The tables of concepts.yaml that turn a name into a meaning."""

    style_words: frozenset[str]
    concept_of: dict[str, str]
    task_of: dict[str, str]
    badge_of: dict[str, str]
    plain_shapes: frozenset[str]

    @classmethod
    def from_config(cls, config: dict) -> "Vocabulary":
        """Invert the lists of the configuration."""
        return cls(
            frozenset(word for group in config["style_words"].values() for word in group),
            {other: concept for concept, others in config["synonyms"].items() for other in others},
            {concept: task for task, concepts in config["classes"].items() for concept in concepts},
            {word: label for label, words in config["badges"].items() for word in words},
            frozenset(config["plain_shapes"]),
        )

    def read(self, name: str) -> Shown | None:
        """Return what an icon shows: one concept, or a single-word object with a badge, else None."""
        words = name.replace("two-tone", "twotone").split("-")
        words = [word for word in words if word not in self.style_words and not re.fullmatch(r"\d+(px)?", word)]
        words = [re.sub(r"(?<=[a-z]{3})\d+$", "", word) for word in words]
        if len(words) > 1 and words[-1] in VARIANT_WORDS:
            words.pop()
        concept = self.concept_of.get("-".join(words), "-".join(words))
        if concept in self.task_of:
            return Shown(self.task_of[concept], concept.replace("-", " "), concept, " ".join(words))
        if len(words) != 2 or words[1] not in self.badge_of or words[0] in self.plain_shapes:
            return None
        thing = self.concept_of.get(words[0], words[0])
        return Shown("icons-badges", self.badge_of[words[1]], thing, " ".join(words))


def usable_sets(package: Path, config: dict) -> dict[str, dict]:
    """Return the collections whose licence and kind allow their use: prefix → info."""
    collections = read_json(package / "collections.json")
    return {
        prefix: info
        for prefix, info in sorted(collections.items())
        if info["license"].get("spdx") in ALLOWED_LICENSES
        and info.get("category") not in config["skip_categories"]
        and prefix not in config["skip_sets"]
    }


def style_of(prefix: str, info: dict, name: str, body: str, pixels: np.ndarray, words: dict) -> str | None:
    """Return the style by the set's palette, the name, the markup and the ink; None where name and ink disagree."""
    said = set(name.replace("two-tone", "twotone").split("-"))
    if info.get("palette"):
        return "colour"
    if said & set(words["duotone"]) or prefix in DUOTONE_SETS or "opacity" in body:
        return "duotone"
    solid = solid_share(pixels) > SOLID_ABOVE
    if said & set(words["filled"]):
        return "filled" if solid else None
    if said & set(words["outline"]):
        return None if solid else "outline"
    return "filled" if solid else "outline"


def draw_icons(package: Path, config: dict) -> Iterator[Icon]:
    """Draw every icon of the usable sets whose name is in the vocabulary, set by set, by name."""
    vocabulary = Vocabulary.from_config(config)
    for prefix, info in usable_sets(package, config).items():
        collection = read_json(package / "json" / f"{prefix}.json")
        for name, icon in sorted(collection["icons"].items()):
            shown = None if icon.get("hidden") else vocabulary.read(name)
            pixels = render(svg_of(icon, collection)) if shown else None
            if shown is None or pixels is None or is_blank(small := downsample(pixels)):
                continue
            style = style_of(prefix, info, name, icon["body"], pixels, config["style_words"])
            if style:
                yield Icon(prefix, name, shown, style, small)
