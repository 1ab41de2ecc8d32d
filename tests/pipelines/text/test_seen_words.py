"""Words that a model has never seen: found in any number and case, told, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.catalog import ROOT, Catalog, ModelSpec
from pipelines.text import seen_words
from pipelines.text.seen_words import MAX_WORDS_BYTES, WORDS_FILE, listed, sentence, unseen

NANO = Catalog().find("nano")


def model(folder: Path, words: str | bytes | None) -> ModelSpec:
    """The shipped model with another list beside its tokenizer, or none."""
    place = folder / "tokenizer"
    place.mkdir()
    source = ROOT / "assets" / "models" / "nano" / "tokenizer" / "tokenizer.json"
    (place / "tokenizer.json").write_bytes(source.read_bytes())
    if words is not None:
        (place / WORDS_FILE).write_bytes(words if isinstance(words, bytes) else words.encode())
    return NANO.model_copy(update={"places": {"tokenizer": place}})


@pytest.mark.parametrize(
    ("prompt", "missing"),
    [
        ("a fisherman on a blue background", ("fisherman",)),
        ("A CAT, and two Dogs!", ()),
        ("robots & robot", ("robots", "robot")),
        ("the rabbit's friend, a strawberry", ("friend",)),
        ("strawberries, cherry pies", ("cherry", "pies")),
        ("a red t-shirt beside 3 foxes", ()),
        ("a blue-green teapot", ("teapot",)),
        ("draw me a very big cat please", ()),
        ("ein Fuß", ("ein", "fuß")),
        ("", ()),
        ("!!! , . ...", ()),
    ],
)
def test_what_the_shipped_model_has_never_seen(prompt: str, missing: tuple[str, ...]) -> None:
    assert unseen(prompt, NANO) == missing


def test_every_example_and_caption_word_is_known() -> None:
    for prompt in NANO.examples:
        assert unseen(prompt, NANO) == ()


def test_a_model_without_a_list_says_nothing(tmp_path: Path) -> None:
    assert unseen("a fisherman", model(tmp_path, None)) == ()


@pytest.mark.parametrize("words", [b"", b"\xff\xfe\x00", b"x" * (MAX_WORDS_BYTES + 1)])
def test_a_list_that_cannot_be_read_says_nothing(tmp_path: Path, words: bytes) -> None:
    assert unseen("a fisherman", model(tmp_path, words)) == ()


def test_a_new_list_is_read(tmp_path: Path) -> None:
    spec = model(tmp_path, "cat\n")
    assert unseen("a fisherman and a cat", spec) == ("fisherman",)
    (tmp_path / "tokenizer" / WORDS_FILE).write_text("fisherman\ncat\nlonger\n")
    assert unseen("a fisherman and a cat", spec) == ()


def test_what_is_cut_off_is_not_asked_for() -> None:
    assert unseen("castle " * 60 + "fisherman", NANO) == ()


def test_sentences() -> None:
    assert sentence(()) == ""
    assert sentence(["fisherman"]) == "This model has never seen: fisherman"
    many = [f"word{n}" for n in range(8)]
    assert sentence(many) == (
        "This model has never seen: word0, word1, word2, word3, word4 and 3 more"
    )
    assert len(sentence(["x" * 5000] * 9)) < 300


def test_lists_are_made_of_captions(tmp_path: Path) -> None:
    words = listed(["A cat, two cats", "the jack-o'-lantern: red", "a cat"])
    assert words.split() == ["a", "cat", "cats", "jack-o'-lantern", "red", "the", "two"]
    assert unseen("2 red cats and a jack-o’-lantern", model(tmp_path, words)) == ()
    assert listed(f"word{n}" for n in range(200_000)) == ""


@example("000000000000000000000A0")
@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_answered(text: str) -> None:
    words = unseen(text, NANO)
    assert len(set(words)) == len(words)
    assert all(word in seen_words.words_of(text) for word in words)
    assert "\n" not in sentence(words)
