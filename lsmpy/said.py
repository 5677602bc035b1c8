"""Logs what other people's programs print."""

from __future__ import annotations

import logging

_MOST_LINES, _LONGEST_LINE = 200, 500  # of what one program says; more is not worth the log's room


class Said:
    """Logs what a program says, line by line with its name, and no more than is worth it."""

    def __init__(self, log: logging.Logger, name: str) -> None:
        """Log to `log`, with the program's `name`."""
        self._to, self._name, self._rest, self._left = log, name, "", _MOST_LINES

    def hear(self, text: str) -> bool:
        """A piece of it; returns whether it is enough."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._log(line)
        if len(self._rest) > _LONGEST_LINE:  # or an endless line would fill the memory
            self._log(self._rest)
            self._rest = ""
        return self._left <= 0

    def end(self) -> None:
        """There is no more."""
        if self._rest:
            self._log(self._rest)
            self._rest = ""

    def _log(self, line: str) -> None:
        self._left -= 1
        if self._left > 0:
            self._to.info("%s: %s", self._name, line[:_LONGEST_LINE])
        elif self._left == 0:
            self._to.info("%s says more than is logged", self._name)
