"""What a browser tab is told: only what changed since it was told last.

Every tab of the page draws all of itself for each answer, which is cheap, and sends what differs,
which is little. What was sent is remembered as hashes, for each browser tab, by the name of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the page: the component that shows it, what it shows now, and what of that gradio
    is told where it is more than a value."""

    place: Any
    value: Hashable
    update: Callable[[Any], Any] = _as_it_is


def ticking(timer: gr.Timer, seconds: float) -> Part:
    """A timer that asks every so many seconds."""
    return Part(place=timer, value=seconds, update=lambda wait: gr.Timer(wait, active=True))


def enabled(button: gr.Button, on: bool) -> Part:
    """A button that can be pressed, or not."""
    return Part(place=button, value=on, update=lambda on: gr.update(interactive=on))


@dataclass
class Sent:
    """What one browser tab was told."""

    hashes: dict[str, int] = field(default_factory=dict)

    def is_new(self, name: str, value: Hashable) -> bool:
        """Whether `value` is another one than the last of this name; it is the last from now on."""
        new = hash(value)
        known = self.hashes.get(name) == new
        self.hashes[name] = new
        return not known

    def forget(self, *names: str) -> None:
        """Has these parts, or without a name all of them, sent again."""
        for name in names or list(self.hashes):
            self.hashes.pop(name, None)

    def news(self, parts: Mapping[str, Part]) -> dict[Any, Any]:
        """The updates of those parts that changed, by their components."""
        return {
            part.place: part.update(part.value)
            for name, part in parts.items()
            if self.is_new(name, part.value)
        }


def answer(updates: dict[Any, Any]) -> Any:
    """What a handler returns: gradio takes an empty dict for a value, so nothing new has a word of
    its own."""
    return updates or gr.skip()
