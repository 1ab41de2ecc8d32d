"""The fixed list: what every figure about a model's pictures is measured on."""

from __future__ import annotations

import re
from collections import Counter

from pipelines.request import MAX_PROMPT
from training.evaluation.prompts import ScenePrompt, all_prompts
from training.scenes.captions import article
from training.scenes.compose import PLACES
from training.scenes.objects import all_colours, all_objects


def said(asked: ScenePrompt) -> str:
    """The first wording of the scenes' captions for what is asked."""
    colour, first = asked.colour, asked.objects[0]
    if asked.kind == "single":
        return f"{article(first)} on {article(colour)} background"
    if asked.kind == "placed":
        return f"a small {first} at the {asked.place}, {colour} background"
    second = article(asked.objects[1])
    return f"{article(first)} next to {second} in front of {article(colour)} backdrop"


def test_the_list_has_two_hundred_prompts_of_three_kinds() -> None:
    listed = all_prompts()
    assert len(listed) == len({asked.prompt for asked in listed}) == 200
    assert Counter(asked.kind for asked in listed) == {"single": 80, "placed": 60, "pair": 60}
    # The first ones stand for all, so that a few prompts already say something.
    assert Counter(asked.kind for asked in listed[:20]) == {"single": 8, "placed": 6, "pair": 6}


def test_prompts_say_what_their_rows_ask_for() -> None:
    for asked in all_prompts():
        assert asked.prompt == said(asked)
        assert len(asked.prompt) < MAX_PROMPT
        assert len(asked.objects) == (2 if asked.kind == "pair" else 1)
        assert len(set(asked.objects)) == len(asked.objects)
        assert (asked.place in PLACES) == (asked.kind == "placed")
        assert asked.place in (*PLACES, "")
        assert not re.search(r"\ba (?!uni)[aeiou]", asked.prompt), asked.prompt
        assert not re.search(r"\ban (?!hour)[^aeiou]", asked.prompt), asked.prompt


def test_every_object_colour_and_place_occurs() -> None:
    listed = all_prompts()
    names = Counter(name for asked in listed for name in asked.objects)
    assert set(names) == {thing.name for thing in all_objects()}
    assert min(names.values()) >= 2
    alone = {name for asked in listed if asked.kind != "pair" for name in asked.objects}
    assert alone == set(names)
    colours = Counter(asked.colour for asked in listed)
    assert set(colours) == set(all_colours())
    assert max(colours.values()) - min(colours.values()) <= 4
    places = Counter(asked.place for asked in listed if asked.place)
    assert set(places.values()) == {15}
