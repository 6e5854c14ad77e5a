"""Columns of numbers and of texts in the tables of a page, told apart by what their cells hold, not by styles.

A table may come from data, so its own styles are not trusted; where its texts begin is the page's matter.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Token = dict[str, Any]  # of html5lib's token stream: type, name, data (attributes or characters)
TEXT, LONG = "nml-text", "nml-long"  # classes: a cell of a column of texts; one of long texts
_CLASS = (None, "class")
_NUMBERS = re.compile(r"(?:[\s\d.,;:/%+\-−–±×≤≥<>≈()\[\]]|(?<=\d)e(?=[+\-\d])|nan|NaN|NaT|None|NA|inf)*")
_LONG = 24  # characters


def mark_text_columns(source: Iterable[Token]) -> Iterator[Token]:
    """Pass on the tokens of a page (a filter of html5lib), with cells in columns of texts given the class TEXT.

    A column is one of texts if any of its cells in the table's body holds more than numbers, signs and brackets; its
    headings go with it. Row headings are texts. Cells in columns with long texts have the class LONG too.
    """
    table: list[Token] = []
    depth = 0
    for token in source:
        kind = token["type"] if token.get("name") == "table" else ""
        depth += (kind == "StartTag") - (kind == "EndTag")
        if not depth and not table:
            yield token
            continue
        table.append(token)
        if not depth:
            _mark(table)
            yield from table
            table = []
    yield from table


def holds_numbers(text: str) -> bool:
    """Whether a cell holds nothing but numbers, signs and brackets, or nothing.

    >>> holds_numbers("+0.01 [−0.02, 0.04]"), holds_numbers("5 %"), holds_numbers("5 epochs")
    (True, True, False)
    """
    return _NUMBERS.fullmatch(text) is not None


@dataclass
class _Cell:
    """A cell of a table by its start tag; whether it is in the table's body; its text."""

    start: Token
    body: bool
    text: str = ""

    @property
    def heading(self) -> bool:
        return bool(self.start["name"] == "th")

    @property
    def span(self) -> int:
        span = self.start["data"].get((None, "colspan"), "")
        return int(span) if re.fullmatch("[1-9][0-9]{0,2}", span) else 1


def _mark(table: list[Token]) -> None:
    """Columns are counted from the right, where they hold data: on the left, row headings may span several rows."""
    rows = _rows(table)
    longest: dict[int, int] = {}  # characters of texts, by column
    for row in rows:
        for column, cell in _counted(row):
            if cell.body and not cell.heading and not holds_numbers(cell.text):
                longest[column] = max(longest.get(column, 0), len(cell.text.strip()))
    data = [column for row in rows for column, cell in _counted(row) if cell.body and not cell.heading]
    for row in rows:
        for column, cell in _counted(row):
            is_label = cell.heading and (cell.body or column > max(data, default=-1))
            if cell.span == 1 and (is_label or column in longest):
                _add_class(cell.start, TEXT)
                if (len(cell.text.strip()) if cell.heading else longest[column]) > _LONG:
                    _add_class(cell.start, LONG)


def _counted(row: list[_Cell]) -> Iterator[tuple[int, _Cell]]:
    """The cells of a row, each with its place from the right."""
    column = 0
    for cell in reversed(row):
        yield column, cell
        column += cell.span


def _rows(table: list[Token]) -> list[list[_Cell]]:
    """The cells of the outermost table, row by row; what a table inside a cell says is that cell's text."""
    rows: list[list[_Cell]] = []
    depth, body, cell = 0, True, None
    for token in table:
        kind, name = token["type"], token.get("name")
        if name == "table":
            depth += (kind == "StartTag") - (kind == "EndTag")
        elif "Characters" in kind or kind == "Entity":
            if cell is not None:
                cell.text += token["data"] if kind != "Entity" else " "
        elif depth > 1 or kind not in ("StartTag", "EndTag"):
            continue
        elif name == "thead":
            body = kind == "EndTag"
        elif name in ("tr", "td", "th"):
            cell = None
            if kind == "StartTag" and name == "tr":
                rows.append([])
            elif kind == "StartTag" and rows:
                cell = _Cell(token, body)
                rows[-1].append(cell)
    return rows


def _add_class(start: Token, name: str) -> None:
    start["data"][_CLASS] = f"{start['data'].get(_CLASS, '')} {name}".strip()
