"""Words for a subject: rare ones, that mean nothing to a model yet."""

from __future__ import annotations

from pipelines.catalog import ModelSpec
from pipelines.errors import StudioError, printable
from pipelines.text import seen_words
from pipelines.text.tokens import tokenize

RARE = ("sks", "zwx", "ohwx", "qvk", "xjy")
_MOST = 40


def has_a_meaning(word: str, model: ModelSpec) -> bool:
    """Whether the model knows a word: it is in its list of seen words, or, where there is no list,
    one piece for its tokenizer, which frequent words are. False where that cannot be told."""
    text = " ".join(word.split())[:_MOST]
    if not text:
        return False
    try:
        if seen_words.has_list(model):
            return not seen_words.unseen(text, model)
        # One more ends every text.
        return all(tokenize(one, model).used <= 2 for one in text.split())
    except StudioError:
        return False


def suggested(model: ModelSpec) -> str:
    """A word that means nothing to the model yet."""
    return next((word for word in RARE if not has_a_meaning(word, model)), RARE[0])


def warning(word: str, model: ModelSpec) -> str:
    """What to say of a word that means something already; "" for one that does not."""
    if not has_a_meaning(word, model):
        return ""
    return (
        f"“{printable(word, 40)}” means something to this model already, and your subject will mix"
        f" with that. Take a word that means nothing, as {suggested(model)}."
    )
