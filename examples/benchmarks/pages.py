"""Tables of results in the pages of the documentation, between two comments:

    <!-- results: gates memory -->
    <!-- end of results -->

Between them stand the table and one line that says how it was made.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from examples.benchmarks import made
from examples.benchmarks.tables import TABLES

DOCS = made.ROOT / "docs"
END = "<!-- end of results -->"
PLACE = re.compile(rf"<!-- results: (\S+) (\S+) -->\n(.*?){END}", re.DOTALL)
BEGIN = re.compile(r"<!-- results: .*-->")
PAPER = "paper/"
"""How the names of results begin whose page `examples.paper.page` writes."""
CHANGED = "**The code has changed since.**"


class Place(NamedTuple):
    """The place of a table in a page."""

    results: str
    table: str
    text: str


def places(text: str) -> list[Place]:
    """All places of a page; each has a beginning and an end."""
    found = [Place(*place) for place in PLACE.findall(text)]
    complete = all("<!-- results: " not in place.text for place in found)
    if not complete or not len(found) == len(BEGIN.findall(text)) == text.count(END):
        raise ValueError(f"a table's beginning or its end, {END!r}, is missing")
    return found


def block(results: str, table: str, text: str, told: str) -> str:
    """A table with its line, between the comments."""
    return f"<!-- results: {results} {table} -->\n\n{text}\n\n{told}\n\n{END}"


def generated(results: str, table: str, folder: Path = made.RESULTS) -> str:
    """What stands at a place, from the stored results."""
    stored = made.read(results, folder)
    tables = TABLES[stored["module"].rpartition(".")[2]]
    return block(results, table, tables[table](stored["results"]), made.line(stored))


def filled(text: str, folder: Path = made.RESULTS) -> str:
    """A page with tables of the stored results; those without stay as they are."""
    for results, table, now in places(text):
        if results in stored_tables(folder):
            old = f"<!-- results: {results} {table} -->\n{now}{END}"
            text = text.replace(old, generated(results, table, folder))
    return text


def stored_tables(folder: Path) -> set[str]:
    """The names of stored results, but those of the paper's page."""
    return {name for name in made.names(folder) if not name.startswith(PAPER)}


def missing(text: str, folder: Path = made.RESULTS) -> Iterator[str]:
    """The names of results that a page shows and that are not stored."""
    for results in dict.fromkeys(place.results for place in places(text)):
        if not (folder / f"{results}.json").is_file():
            yield results


def with_changes(text: str) -> str:
    """A page that says under each table whether the code has changed since."""

    def told(place: re.Match[str]) -> str:
        path = made.RESULTS / f"{place[1]}.json"
        if not path.is_file() or not made.is_stale(made.read(place[1])):
            return place[0]
        return place[0].removesuffix(END).rstrip() + f" {CHANGED}\n\n{END}"

    return PLACE.sub(told, text)
