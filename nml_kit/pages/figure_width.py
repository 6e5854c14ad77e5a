"""How narrow a figure may be drawn before its texts cover each other."""

import re
from collections.abc import Iterator
from typing import Any

_NARROW, _WIDE = 300, 680  # pixels: a phone's, and what a figure with several panels or long texts needs
_LONGEST_LABEL, _LONGEST_NOTE, _LONGEST_LEGEND = 16, 48, 70  # characters that fit a phone


def narrowest_width(data: list[Any], layout: dict[str, Any]) -> int:
    """Pixels that a figure (plain data) needs: a phone's width if it has one column of panels and short texts.

    >>> narrowest_width([{"type": "bar", "x": [1, 2], "y": ["a", "b"]}], {})
    300
    >>> narrowest_width([{"type": "heatmap", "z": [[1]]}], {})
    680
    """
    traces = [trace for trace in data if isinstance(trace, dict)]
    names = {str(trace.get("name", "")) for trace in traces if trace.get("showlegend") is not False}
    fits = (
        _columns(layout) == 1
        and all(trace.get("type") in (None, "scatter", "bar") for trace in traces)
        and all(len(label) <= _LONGEST_LABEL for trace in traces for label in _labels(trace))
        and all(len(note) <= _LONGEST_NOTE for note in _notes(layout))
        and sum(map(len, names)) <= _LONGEST_LEGEND
    )
    return _NARROW if fits else _WIDE


def _columns(layout: dict[str, Any]) -> int:
    """How many panels stand side by side: where x axes begin."""
    axes = [axis for name, axis in layout.items() if name.startswith("xaxis") and isinstance(axis, dict)]
    domains = [axis["domain"] if isinstance(axis.get("domain"), list) else [] for axis in axes]
    return len({domain[0] if domain and isinstance(domain[0], int | float) else 0 for domain in domains}) or 1


def _labels(trace: dict[str, Any]) -> Iterator[str]:
    """What stands left of a panel."""
    values = trace.get("y")
    return (value for value in values if isinstance(value, str)) if isinstance(values, list) else iter(())


def _notes(layout: dict[str, Any]) -> Iterator[str]:
    """The lines of what is written on a figure, such as titles of panels, without plotly's tags."""
    notes = layout.get("annotations")
    for note in notes if isinstance(notes, list) else ():
        text = str(note.get("text", "")) if isinstance(note, dict) else ""
        yield from (re.sub(r"<[^>]+>", "", line) for line in text.split("<br>"))
