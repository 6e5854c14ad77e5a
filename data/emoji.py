"""Emoji: identities without gender and skin-tone variants, their drawings by vendor and their texts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from packages import read_json
from render import downsample, is_blank, render, svg_of

SHORTCODES = ("github", "iamcal", "joypixels", "emojibase")
GENDER_SIGNS = {"2640", "2642", "1F468", "1F469"}
CLOCK_FACES = re.compile("1F5[56].")


@dataclass(frozen=True)
class Emoji:
    """One emoji identity: its code points, name, merged class and texts by source."""

    code: str
    name: str
    label: str
    texts: dict[str, list[str]]


def plain(name: str) -> str:
    """Reduce a name to letters and digits, so that `black-club-suit` equals `Black Club Suit`."""
    return re.sub("[^a-z0-9]", "", name.lower())


def is_variant(entry: dict) -> bool:
    """Tell whether an entry only varies the gender or family of another one, or is one of the 24 clock faces."""
    parts = entry["hexcode"].split("-")
    joined = "200D" in parts
    family = joined and entry.get("group") == 1 and len(GENDER_SIGNS & set(parts)) > 0
    return family or bool(CLOCK_FACES.fullmatch(entry["hexcode"]))


def read_emoji(package: Path, classes: dict[str, list[str]]) -> list[Emoji]:
    """Return all identities that belong to one of the merged classes, ordered by code."""
    subgroups = read_json(package / "meta" / "groups.json")["subgroups"]
    unicode_names = read_json(package / "meta" / "unicode-names.json")
    label_of = {subgroup: label for label, members in classes.items() for subgroup in members}
    codes = {source: read_json(package / "en" / "shortcodes" / f"{source}.json") for source in SHORTCODES}
    found = []
    for entry in read_json(package / "en" / "data.json"):
        label = label_of.get(subgroups.get(str(entry.get("subgroup"))))
        if label is None or is_variant(entry):
            continue
        code = entry["hexcode"]
        texts = {"name": [entry["label"]], "keywords": [", ".join(entry.get("tags", []))]}
        texts["unicode"] = [unicode_names.get(code, "").lower()]
        for source, table in codes.items():
            value = table.get(code, [])
            texts[source] = value if isinstance(value, list) else [value]
        found.append(Emoji(code, entry["label"], label, {k: [t for t in v if t] for k, v in texts.items()}))
    return sorted(found, key=lambda emoji: emoji.code)


def drawings(package: Path, vendor: str, emoji: list[Emoji]) -> Iterator[tuple[Emoji, np.ndarray]]:
    """Draw a vendor's version of each identity it has: by code points where the set states them, else by name."""
    collection = read_json(package / "json" / f"{vendor}.json")
    icons = {name: icon for name, icon in collection["icons"].items() if not icon.get("hidden")}
    by_code = {code.upper(): name for code, name in collection.get("chars", {}).items() if name in icons}
    by_name = {plain(re.sub("-1$", "", name)): name for name in sorted(icons, reverse=True)}
    for one in emoji:
        bare = "-".join(part for part in one.code.split("-") if part != "FE0F")
        name = by_code.get(one.code) or by_code.get(bare)
        for text in [one.name, *one.texts["unicode"], *one.texts["emojibase"], *one.texts["github"]]:
            name = name or by_name.get(plain(text)) or by_name.get(plain(text.replace("flag", "flag for ")))
        pixels = render(svg_of(icons[name], collection)) if name else None
        if pixels is not None and not is_blank(small := downsample(pixels)):
            yield one, small
