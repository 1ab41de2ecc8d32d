"""The fixed list: what every figure about a model's pictures is measured on."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from pipelines.request_values import MAX_PROMPT
from training.evaluation.prompts import (
    BARE,
    BINDING,
    COUNTS,
    FIRST,
    FULL,
    LISTS,
    TRIOS,
    WORDINGS,
    ScenePrompt,
    all_prompts,
)
from training.scenes.captions import article
from training.scenes.compose import PLACES
from training.scenes.grounds import all_colours
from training.scenes.objects import all_objects


def of(name: str) -> list[ScenePrompt]:
    return [asked for asked in all_prompts() if asked.list == name]


def said(asked: ScenePrompt) -> str:
    """The first wording of the first scenes' captions for what is asked."""
    colour, first = asked.colour, asked.objects[0]
    if asked.kind == "single":
        return f"{article(first)} on {article(colour)} background"
    if asked.kind == "placed":
        return f"a small {first} at the {asked.place}, {colour} background"
    second = article(asked.objects[1])
    return f"{article(first)} next to {second} in front of {article(colour)} backdrop"


def test_the_first_two_hundred_are_as_they_always_were() -> None:
    listed = all_prompts()[:200]
    assert listed == tuple(of(FIRST))
    assert Counter(asked.kind for asked in listed) == {"single": 80, "placed": 60, "pair": 60}
    assert Counter(asked.kind for asked in listed[:20]) == {"single": 8, "placed": 6, "pair": 6}
    texts = "\n".join(asked.prompt for asked in listed)
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "6d08bd03ae9de1f4"
    for asked in listed:
        assert asked.prompt == said(asked)
        assert (asked.place in PLACES) == (asked.kind == "placed")
    places = Counter(asked.place for asked in listed if asked.place)
    assert set(places.values()) == {15}
    colours = Counter(asked.colour for asked in listed)
    assert set(colours) == set(all_colours())


def test_every_prompt_asks_for_known_things_in_proper_english() -> None:
    listed = all_prompts()
    assert len({asked.prompt for asked in listed}) == len(listed)
    assert [asked.seed for asked in listed] == list(range(len(listed)))
    parts = {"pair": 2, "trio": 3}
    for asked in listed:
        assert asked.list in LISTS
        assert len(asked.prompt) < MAX_PROMPT
        assert len(asked.names) == len(set(asked.names)) == parts.get(asked.kind, 1)
        assert asked.colour in ("", *all_colours())
        assert not re.search(r"\ba (?!uni|ufo)[aeiou]", asked.prompt), asked.prompt
        assert not re.search(r"\ban (?!hour)[^aeiou]", asked.prompt), asked.prompt
        if asked.colour:
            assert asked.colour in asked.prompt


def test_an_object_that_nobody_knows_is_told() -> None:
    with pytest.raises(ValueError, match="called quokka"):
        ScenePrompt(prompt="a quokka", kind="single", objects=("quokka",)).things(all_objects())


def test_the_other_lists_ask_for_what_they_are_for() -> None:
    assert len(of(BINDING)) >= 50
    for asked in of(BINDING):
        (thing,) = asked.things(all_objects())
        colours = {sprite.colour for sprite in thing.sprites}
        assert len(colours) == 1
        assert asked.objects[0].startswith(colours.pop())
        assert asked.objects[0] in asked.prompt.lower()
        assert not asked.objects[0].startswith(asked.colour)
    worded = sum("background" in asked.prompt for asked in of(BINDING))
    assert 0.2 < worded / len(of(BINDING)) < 0.8
    assert {asked.count for asked in of(COUNTS)} == {2, 3, 4}
    assert sum(asked.count <= 3 for asked in of(COUNTS)) >= 30
    for asked in of(COUNTS):
        assert asked.things(all_objects())[0].article
        assert re.match("two|three|four|[234] ", asked.prompt)
    assert all(asked.kind == "trio" for asked in of(TRIOS))
    assert [asked.objects for asked in of(BARE)] == [asked.objects for asked in of(FULL)]
    for asked in of(BARE):
        assert asked.prompt in (asked.objects[0], article(asked.objects[0]))
        assert not asked.colour
    assert all(asked.colour for asked in of(FULL))
    assert {asked.kind for asked in of(WORDINGS)} == {"single", "placed"}
    # The first ones after the old list stand for all lists.
    assert {asked.list for asked in all_prompts()[200:220]} == set(LISTS) - {FIRST}
