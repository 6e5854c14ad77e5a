"""Columns of numbers and of texts in the tables of a page, told apart by what their cells hold, not by styles.

A table may come from data, so its own styles are not trusted; where its texts begin is the page's matter.
"""

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, Tag

_NUMBERS = re.compile(r"(?:[\s\d.,;:/%+\-−–±×≤≥<>≈()\[\]]|(?<=\d)e(?=[+\-\d])|nan|NaN|NaT|None|NA|inf)*")
_LONG = 24  # characters


def mark_text_columns(html: str) -> str:
    """Give cells in columns of texts the class nml-text, and nml-long if there are long ones.

    A column is one of texts if any of its cells in the table's body holds more than numbers, signs and brackets; its
    headings go with it. Row headings are texts.

    >>> mark_text_columns("<table><tr><td>5 epochs</td><td>+0.01 [−0.02, 0.04]</td></tr></table>")
    '<table><tr><td class="nml-text">5 epochs</td><td>+0.01 [−0.02, 0.04]</td></tr></table>'
    """
    soup = BeautifulSoup(html, "html.parser", multi_valued_attributes=None)
    for table in soup.find_all("table"):
        _mark(table)
    return str(soup)


def _mark(table: Tag) -> None:
    cells = [place for row in table.find_all("tr") if row.find_parent("table") is table for place in _places(row)]
    data = [(column, cell.get_text().strip()) for column, cell in cells if cell.name == "td"]
    last = max((column for column, _ in data), default=-1)
    longest: dict[int, int] = {}  # characters of texts, by column
    for column, text in data:
        if not _NUMBERS.fullmatch(text):
            longest[column] = max(longest.get(column, 0), len(text))
    for column, cell in cells:
        heads_row = cell.name == "th" and (cell.find_parent("thead") is None or column > last)
        if (heads_row or column in longest) and cell.get("colspan", "1") == "1":
            is_long = (len(cell.get_text().strip()) if cell.name == "th" else longest[column]) > _LONG
            cell["class"] = f"{cell.get('class', '')} nml-text{' nml-long' * is_long}".strip()


def _places(row: Tag) -> Iterator[tuple[int, Tag]]:
    """The cells of a row with their columns, counted from the right: row headings on the left may span several rows."""
    column = 0
    for cell in reversed(row.find_all(["td", "th"], recursive=False)):
        yield column, cell
        span = str(cell.get("colspan", ""))
        column += int(span) if re.fullmatch("[1-9][0-9]{0,2}", span) else 1
