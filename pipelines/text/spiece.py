"""The vocabulary of old repositories: a `spiece.model` of SentencePiece as a fast tokenizer.

The file is a protocol buffer (`sentencepiece_model.proto`); the few fields that a unigram model
needs are read here, so that neither SentencePiece nor protobuf has to be installed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_UNIGRAM = 1
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_SPACE = "▁"
_END = "</s>"
_MAX_PIECES = 300_000


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What was read: pieces with their log probabilities, and which of them are no text."""

    pieces: tuple[tuple[str, float], ...]
    unknown: int
    controls: tuple[str, ...]
    charsmap: bytes


def read(data: bytes) -> Vocabulary:
    """The vocabulary in a `spiece.model`. Raises ValueError for anything else."""
    pieces: list[tuple[str, float]] = []
    kinds: list[int] = []
    charsmap, model_type = b"", _UNIGRAM
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text, score, kind = _piece(value)
            pieces.append((text, score))
            kinds.append(kind)
            if len(pieces) > _MAX_PIECES:
                raise ValueError("too many pieces")
        elif field == 2 and isinstance(value, bytes):
            types = [v for f, v in _fields(value) if f == 3 and isinstance(v, int)]
            model_type = types[-1] if types else _UNIGRAM
        elif field == 3 and isinstance(value, bytes):
            charsmap = next((v for f, v in _fields(value) if f == 2 and isinstance(v, bytes)), b"")
    if model_type != _UNIGRAM or _BYTE in kinds:
        raise ValueError("not a unigram model without bytes")
    if kinds.count(_UNKNOWN) != 1 or _END not in (text for text, _ in pieces):
        raise ValueError("no end or no unknown piece")
    controls = [t for (t, _), kind in zip(pieces, kinds, strict=True) if kind != _NORMAL]
    return Vocabulary(
        pieces=tuple(pieces),
        unknown=kinds.index(_UNKNOWN),
        controls=tuple(controls),
        charsmap=charsmap,
    )


def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer that T5 was trained with: the text's pieces and an end token."""
    made = Tokenizer(
        models.Unigram(list(vocabulary.pieces), unk_id=vocabulary.unknown, byte_fallback=False)
    )
    steps = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if vocabulary.charsmap:
        steps.insert(0, normalizers.Precompiled(vocabulary.charsmap))
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    end = next(i for i, (text, _) in enumerate(vocabulary.pieces) if text == _END)
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, end)]
    )
    return made


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, _NORMAL
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 2 and isinstance(value, float):
            score = value
        elif field == 3 and isinstance(value, int):
            kind = value
    if not text or score != score:
        raise ValueError("an empty piece")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(number, value) of each field of a protocol buffer message. Raises ValueError."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, at = _varint(data, at)
            yield field, number
        elif wire == 2:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise ValueError("cut off")
            yield field, data[at : at + length]
            at += length
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            if length > len(data) - at:
                raise ValueError("cut off")
            yield field, struct.unpack_from("<d" if wire == 1 else "<f", data, at)[0]
            at += length
        else:
            raise ValueError("not a protocol buffer")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise ValueError("cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("a number without end")
