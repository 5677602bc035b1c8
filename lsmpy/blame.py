"""Whose fault it is: which check targets are taken for dead themselves, and count by no ISP until they answer again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from lsmpy import verdict
from lsmpy.model import Check
from lsmpy.prober import Prober
from lsmpy.target import Target

log = logging.getLogger(__name__)


class Blame:
    """The targets that are `blamed` now."""

    def __init__(self) -> None:
        """Nobody is."""
        self.blamed: frozenset[Check] = frozenset()

    def look(self, probers: Sequence[Prober]) -> None:
        """Acquit whoever answers again, and blame whoever fails by every ISP while others answer."""
        self.blamed -= self._acquitted(probers)
        if all(each.is_well() for each in probers):
            return
        for check, fell in verdict.blamed({each.isp.name: each.trials() for each in probers}).items():
            if check not in self.blamed:
                self.blamed |= {check}
                self._excuse(_of(check, probers), fell)

    def _excuse(self, asked: Sequence[tuple[Prober, Target]], fell: Mapping[str, int]) -> None:
        text = asked[0][1].text
        log.warning("%s fails by every ISP: taken for dead itself, it does not count until it answers again", text)
        for prober, _ in asked:
            if prober.isp.name in fell:
                prober.excuse(fell[prober.isp.name])

    def _acquitted(self, probers: Sequence[Prober]) -> set[Check]:
        """What was blamed and answers again, or is probed by one ISP or none by now; it begins anew."""
        found = set()
        for check in self.blamed:
            asked = _of(check, probers)
            isps = {prober.isp.name for prober, _ in asked}
            if any(prober.answers_steadily(target) for prober, target in asked):
                why = "answers again"
            elif len(isps) < 2:  # that it fails by every ISP means nothing any more
                why = f"is probed by {''.join(isps)} alone now"
            else:
                continue
            found.add(check)
            if asked:
                log.info("%s %s, and counts again", asked[0][1].text, why)
            for prober, target in asked:
                prober.begin_anew(target)
        return found


def _of(check: Check, probers: Iterable[Prober]) -> list[tuple[Prober, Target]]:
    """Who probes the same, in whatever spelling."""
    return [(prober, target) for prober in probers for target in prober.targets if target.check == check]
