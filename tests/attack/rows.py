"""Every attack there is, and how they are run one after another."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.attack import crowds, floods, foreign_pages, forged_calls, soak, tokens
from tests.attack.attack import Attack, Broken, NotTried, Target

# A new topic is a module with ATTACKS, named here.
TOPICS = (foreign_pages, tokens, forged_calls, floods, crowds, soak)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of an attack: "held", "BROKEN" or "not tried"."""

    attack: Attack
    result: str
    said: str
    seconds: float


def attacks(only: str = "") -> list[Attack]:
    """All of them, or those of one topic."""
    return [one for topic in TOPICS for one in topic.ATTACKS if only in ("", one.topic)]


def tried(target: Target, chosen: Iterable[Attack]) -> Iterator[Row]:
    """Tries each; a promise that is broken does not keep the others from being tried."""
    for attack in chosen:
        began = time.monotonic()
        try:
            result, said = "held", attack.run(target)
        except Broken as broken:
            result, said = "BROKEN", str(broken)
        except NotTried as reason:
            result, said = "not tried", str(reason)
        yield Row(attack=attack, result=result, said=said, seconds=time.monotonic() - began)


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    cells = (row.attack.topic, row.attack.promise, row.result, row.said, f"{row.seconds:.1f} s")
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


HEAD = "| topic | promise | result | figures | time |\n|---|---|---|---|---|"
