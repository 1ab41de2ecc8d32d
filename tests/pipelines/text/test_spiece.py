"""Old vocabularies: the same tokens as the tokenizer that they were made from."""

from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog import Catalog
from pipelines.errors import ModelError
from pipelines.text import spiece
from pipelines.text.tokens import tokenize
from tests.tiny import NANO


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def spiece_file(tokenizer: Path) -> bytes:
    """A `tokenizer.json` of a unigram model, written as a `spiece.model`."""
    model = json.loads(tokenizer.read_text("utf-8"))["model"]
    out = b""
    for i, (text, score) in enumerate(model["vocab"]):
        kind = {model["unk_id"]: 2, 0: 3, 1: 3}.get(i, 1)
        piece = _field(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score)
        out += _field(1, piece + _varint(3 << 3) + _varint(kind))
    return out + _field(2, _varint(3 << 3) + _varint(1))


def test_a_prompt_has_the_same_tokens_from_both_files(tmp_path: Path) -> None:
    nano = Catalog().find("nano")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(spiece_file(NANO / "tokenizer" / "tokenizer.json"))
    model = nano.model_copy(update={"places": {"tokenizer": folder}})
    for text in (
        *nano.examples,
        *("", "</s> a cat <pad>", "A  Red\tApple", "☃ snow", "x" * 400, "a red apple, a top hat"),
    ):
        assert tokenize(text, model) == tokenize(text, nano), text


def test_it_agrees_with_sentencepiece_itself() -> None:
    import sentencepiece

    draw = random.Random(0)
    text = "a red apple café naïve ﬁre ½ \uff21\uff22 dog's house, tree; over-under 12 日本"
    words = text.split()
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(1000)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=70,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = spiece.tokenizer(spiece.read(model.getvalue()))
    for _ in range(500):
        text = " ".join(draw.choices(words, k=draw.randint(0, 9)))
        text += "".join(draw.choices("abc ½ﬁé \uff21\u3000\t .,-Zz☃", k=draw.randint(0, 12)))
        assert ours.encode(text).ids == [*reference.encode(text), 1], text


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        spiece.read(data)
    except ValueError:
        pass


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.5, 0.99])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, cut: float) -> None:
    data = spiece_file(NANO / "tokenizer" / "tokenizer.json")
    (tmp_path / "spiece.model").write_bytes(data[: int(len(data) * cut)] + b"\xff")
    model = Catalog().find("nano").model_copy(update={"places": {"tokenizer": tmp_path}})
    with pytest.raises(ModelError, match="is not a tokenizer"):
        tokenize("a red apple", model)
