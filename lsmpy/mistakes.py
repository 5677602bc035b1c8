"""Mistakes in the configuration: where each stands in the file, collected so that all are told at once."""

from __future__ import annotations

import re

from lsmpy import ConfigError


class Mistakes:
    """What is wrong with one file, and what is only worth a warning.

    Args:
        text: the whole file, TOML that could be parsed.
        source: what messages call it.
    """

    def __init__(self, text: str, source: str) -> None:
        self.warnings: list[str] = []
        self._source = source
        self._lines = _Lines(text)
        self._errors: list[tuple[int, str]] = []
        self._unusable: set[tuple[str, int | None, str]] = set()

    def wrong(self, table: str, index: int | None, key: str, text: str, at: str | None = None) -> None:
        """Add a mistake: its table, its place among tables of that name, its key, what is wrong and would be right.

        `at` is the key whose line is shown, where that is another: an empty one is the table's own.
        """
        line = self._lines.find(table, index, key if at is None else at)
        path = ".".join(part for part in (table, key) if part)
        self._errors.append((line, f"{path}: {text}"))

    def replaced(self, table: str, index: int | None, key: str) -> None:
        """Note that the value of a key is only a stand-in, which nothing else may be held against."""
        self._unusable.add((table, index, key))

    def usable(self, table: str, index: int | None, key: str) -> bool:
        """Whether the value of a key is what the file says."""
        return (table, index, key) not in self._unusable

    def any_replaced(self, *keys: str) -> bool:
        """Whether one of these keys is a stand-in in some table."""
        return any(key in keys for _, _, key in self._unusable)

    def tell(self) -> None:
        """Raise what was collected.

        Raises:
            ConfigError: there were mistakes.
        """
        if self._errors:
            raise ConfigError("\n".join(f"{self._source}:{line}: {text}" for line, text in sorted(self._errors)))


def shown(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


class _Lines:
    """Finds the line of a key, which tomllib does not tell."""

    def __init__(self, text: str) -> None:
        self.places: dict[tuple[str, int | None, str], int] = {}
        table, index, counts = "", None, dict[str, int]()
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*(\[\[?)\s*([\w.-]+)", line):
                table = header[2]
                root = table.split(".")[0]
                if header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                index = counts.get(root)
                self.places.setdefault((table, index, ""), number)
                self.places.setdefault((root, index, table.partition(".")[2]), number)
            elif key := re.match(r"""\s*["']?([\w.-]+)["']?\s*=""", line):
                self.places.setdefault((table, index, key[1]), number)
                self.places.setdefault((table, index, key[1].split(".")[0]), number)
                if inline := re.match(r"\s*([\w-]+)\s*=\s*\{", line):
                    for inner in re.findall(r"([\w-]+)\s*=", line[inline.end() :]):
                        self.places.setdefault((f"{table}.{inline[1]}".lstrip("."), index, inner), number)

    def find(self, table: str, index: int | None, key: str) -> int:
        """The line of the key, else of its table, else 1."""
        outer, _, last = table.rpartition(".")
        places = [(table, index, key), (table, index, ""), (outer, index, last), (outer, index, "")]
        places += [(key, None, ""), (key, 0, "")]
        return next((self.places[place] for place in places if place in self.places), 1)
