"""Which words of a prompt a model has never seen, where it says which ones it has.

A small model knows the words of its captions and nothing else: whatever else is typed is spelled in
letters that mean nothing to it. Beside its tokenizer lies a list of what it has seen, one word a
line, written when its text encoder was trained. A model without the list, as any that reads with
T5-XXL, has nothing to tell. Light enough for the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from pipelines.catalog import ModelSpec
from pipelines.text.tokens import tokenize

WORDS_FILE = "words.txt"
MAX_WORDS_BYTES = 1_000_000
_SHOWN = 5
_LONGEST = 40
# Spelled in pieces by every vocabulary, and short: what people call their subjects.
_RARE = ("sks", "ohwx", "zwx", "pfqx", "vkgt", "qxzj")
_WORD = re.compile(r"[^\W_]+(?:['’-]{1,2}[^\W_]+)*")
# Words that show nothing themselves, so nobody misses them.
_SILENT = frozenset(
    "a an the this that these those of and or but with without in into on onto at to from by for as"
    " over under near is are was be been being it its he she his her their there here i me my you"
    " your we our has have having do does please some any very so just make draw show paint give"
    " want would like can could which who where while not no".split()
)


def words_of(text: str) -> list[str]:
    """The words of `text` in lower case, in its order, each as often as it stands there."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def listed(captions: Iterable[str]) -> str:
    """The content of WORDS_FILE for a text encoder that learned from `captions`; empty where they
    have more words than a list could usefully hold."""
    found = sorted({word for caption in captions for word in words_of(caption)})
    content = "".join(f"{word}\n" for word in found)
    return content if len(content.encode()) <= MAX_WORDS_BYTES else ""


def unseen(prompt: str, model: ModelSpec) -> tuple[str, ...]:
    """Words that `model` reads of `prompt` and has never seen, each once; none where it does not
    say what it has. Raises ModelError where its tokenizer cannot be read."""
    known = _known(model.part("tokenizer"))
    if known is None:
        return ()
    read = tokenize(prompt, model).kept
    words = words_of(read)
    if words and words[-1] not in words_of(prompt):
        # Cut in its middle: a piece is no word that anybody wrote.
        words.pop()
    missing = [word for word in words if not _is_seen(word, known)]
    return tuple(dict.fromkeys(missing))


def is_known(text: str, model: ModelSpec) -> bool:
    """Whether `model` has a meaning for every word of `text`: it has seen each, or, where it does
    not say what it has seen, each is one token. Raises ModelError where its tokenizer cannot be
    read."""
    words = words_of(text)
    if not words:
        return False
    known = _known(model.part("tokenizer"))
    if known is not None:
        return all(_is_seen(word, known) for word in words)
    # A vocabulary gives a token of its own to what is frequent, and spells the rest in pieces.
    ends = len(tokenize("", model).ids)
    return all(len(tokenize(word, model).ids) - ends == 1 for word in words)


def rare_word(model: ModelSpec) -> str:
    """A word that means nothing to `model`, for a subject; "" where none is left. Raises
    ModelError."""
    return next((word for word in _RARE if not is_known(word, model)), "")


def sentence(words: Sequence[str]) -> str:
    """What to tell of unseen `words`, empty for none."""
    if not words:
        return ""
    shown = [word if len(word) <= _LONGEST else f"{word[:_LONGEST]}…" for word in words[:_SHOWN]]
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"This model has never seen: {', '.join(shown)}{more}"


def _is_seen(word: str, known: frozenset[str]) -> bool:
    """Whether `word`, another number of it, or each part of it is among `known`."""
    if word in _SILENT or word.isnumeric() or known.intersection(_forms(word)):
        return True
    parts = re.split("['-]+", word)
    return len(parts) > 1 and all(_is_seen(part, known) for part in parts if len(part) > 1)


def _forms(word: str) -> set[str]:
    """`word` and what its singular or plural may be."""
    forms = {word, f"{word}s", f"{word}es", word.removesuffix("'s")}
    if word.endswith("s"):
        forms |= {word[:-1], word.removesuffix("es")}
    if word.endswith("ies"):
        forms.add(f"{word[:-3]}y")
    if word.endswith("y"):
        forms.add(f"{word[:-1]}ies")
    return forms


def _known(tokenizer: Path) -> frozenset[str] | None:
    """The words of the list beside a tokenizer; None where there is none that can be read."""
    file = tokenizer / WORDS_FILE
    try:
        stat = file.stat()
        if stat.st_size > MAX_WORDS_BYTES:
            return None
        return _read(file, stat.st_mtime_ns)
    except (OSError, UnicodeDecodeError, ValueError):
        return None


@lru_cache(maxsize=8)
def _read(file: Path, _changed: int) -> frozenset[str] | None:
    """Keyed by the time of the last change, so that a new list is read."""
    return frozenset(file.read_text("utf-8").split()) or None
