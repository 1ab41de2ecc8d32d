"""The tokenizer from scratch: words stay whole, everything else is spelled."""

from __future__ import annotations

import pytest

from training.methods.text_encoder import END, PAD, SPANS, UNKNOWN, train_tokenizer

CAPTIONS = [
    f"{thing} on a {colour} background"
    for thing in ("a red apple", "an alarm clock", "a slice of watermelon", "two jack-o'-lanterns")
    for colour in ("red", "light blue", "gray")
]


@pytest.mark.parametrize("vocabulary", [110, 200, 1024])
def test_words_of_the_captions_are_whole(vocabulary: int) -> None:
    tokenizer = train_tokenizer(CAPTIONS, vocabulary)
    assert tokenizer.get_vocab_size() <= vocabulary
    for caption in CAPTIONS:
        encoded = tokenizer.encode(caption)
        assert encoded.ids[-1] == END
        assert UNKNOWN not in encoded.ids
        assert tokenizer.decode(encoded.ids) == caption
        if vocabulary > 110:
            assert len(encoded.ids) == len(caption.split()) + 1


def test_other_words_are_spelled() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 200)
    ids = tokenizer.encode("a zebra, 3 quokkas!").ids
    assert UNKNOWN not in ids
    assert tokenizer.decode(ids) == "a zebra, 3 quokkas!"


def test_a_word_before_a_comma_is_the_same_token() -> None:
    captions = [f"{thing}, {thing} background: a cat" for thing in ("red", "blue", "green")]
    tokenizer = train_tokenizer(captions, 200)
    ids = tokenizer.encode("a cat, a red cat: blue background.").ids
    vocabulary = tokenizer.get_vocab()
    assert ids.count(vocabulary["▁cat"]) == 2
    assert ids.count(vocabulary["▁red"]) == 1
    assert tokenizer.decode(ids) == "a cat, a red cat: blue background."


def test_what_t5_reserves_comes_first() -> None:
    vocabulary = train_tokenizer(CAPTIONS, 200).get_vocab()
    assert [vocabulary[name] for name in ("<pad>", "</s>", "<unk>")] == [PAD, END, UNKNOWN]
    assert [vocabulary[f"<extra_id_{i}>"] for i in range(SPANS)] == list(range(3, 3 + SPANS))
