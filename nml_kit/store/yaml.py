"""YAML as plain data, or an error of ours: no tags that build objects, no key twice, no small text that grows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nml_kit.errors import DataFileError, InvalidInputError

_MOST_BYTES = 1_000_000
_MOST_NODES = 100_000  # with each alias counted as what it stands for


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader takes the last of two equal keys; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError("while reading a mapping", node.start_mark,
                                               f"found the key {key.value!r} twice", key.start_mark)  # fmt: skip
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file; raises DataFileError if it cannot be read, InvalidInputError if it is not plain YAML."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode("utf-8")
    except (OSError, ValueError) as error:  # a path with a NUL, bytes that are no UTF-8
        raise DataFileError(f"Expected a YAML file at {path}, got: {error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> Any:
    """Read plain YAML; raises InvalidInputError that names `origin` for anything else."""
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} characters")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None and _size(node, {}) > _MOST_NODES:
                raise ValueError(f"more than {_MOST_NODES:,} values, or an alias inside what it stands for")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        # PyYAML's constructors raise whatever int(), datetime() and their like raise
        raise InvalidInputError(f"Expected YAML in {origin}, got: {str(error) or type(error).__name__}") from error


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """The number of values with aliases written out; infinite if one stands for what it is in."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # while its parts are counted
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in _parts(node))
    return sizes[id(node)]


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
