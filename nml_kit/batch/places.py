"""Paths among parameters made absolute: a kernel works in the directory of its run, not where the user stands."""

import os
import re
from pathlib import Path
from typing import Any

_DATA = ("data", "task", "tasks", "id_task", "ood_task", "id_tasks", "ood_tasks", "sources")
_BACKBONES = ("backbone", "backbones", "baseline")
_FILES = ("results", *(f"{split}_{kind}" for split in ("train", "test") for kind in ("features", "labels", "domains")))
_FAMILY = re.compile("(?:file|hf|sentence-transformers|(?:timm|open_clip):local-dir):")


def with_absolute_paths(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the paths absolute in those that name files, data sets or backbones."""
    return {name: _absolute(name, value) for name, value in params.items()}


def _absolute(name: str, value: Any) -> Any:
    if name not in (*_DATA, *_BACKBONES, *_FILES) or not value:
        return value
    if isinstance(value, dict):  # of tasks, as `ood_tasks`
        return {_absolute(name, key): content for key, content in value.items()}
    if isinstance(value, list):
        return [_absolute(name, item) for item in value]
    if not isinstance(value, str) or (name in _BACKBONES and not _FAMILY.match(value)):
        return value
    return absolute_source(value)


def absolute_source(source: str) -> str:
    """What names a data set or backbone, with the paths in it absolute if something is there.

    A name of a data set stays one, also where a folder is called alike.

    >>> absolute_source("icons+/shards/in-{0..9}.tar"), absolute_source("hf:/./?pooling=cls")
    ('icons+/shards/in-{0..9}.tar', 'hf:/?pooling=cls')
    """
    family = match[0] if (match := _FAMILY.match(source)) else ""
    named = source.removeprefix(family)
    path = re.split("[#?]", named)[0] if family else named  # then an architecture or a pooling
    is_shards = path.endswith(".tar") and "+" not in path  # a pattern in braces is not there as it stands
    is_there = os.path.exists(path)  # noqa: PTH110 (Path.exists raises for a long list of names)
    if path and (is_there or is_shards) and (family or not _is_name(source)):
        return family + str(Path(path).absolute()) + named[len(path) :]
    return "+".join(map(absolute_source, source.split("+"))) if "+" in source else source


def _is_name(source: str) -> bool:
    from nml_kit.data import SHIPPED_TASKS, is_known  # late: most parameters need no look at data sets

    return source in SHIPPED_TASKS or is_known(source)
