"""Words for a subject, as the page suggests them and warns of them."""

from __future__ import annotations

from pipelines.catalog import ModelSpec
from pipelines.errors import StudioError, printable
from pipelines.text import seen_words

USUAL = "sks"
_MOST = 40


def suggested(model: ModelSpec) -> str:
    """A word that means nothing to the model yet."""
    try:
        return seen_words.rare_word(model) or USUAL
    except StudioError:
        return USUAL


def warning(word: str, model: ModelSpec) -> str:
    """What to say of a word that means something already; "" for one that does not, and where that
    cannot be told."""
    try:
        if not seen_words.is_known(word[:_MOST], model):
            return ""
    except StudioError:
        return ""
    return (
        f"“{printable(word, 40)}” means something to this model already, and your subject will mix"
        f" with that. Take a word that means nothing, as {suggested(model)}."
    )
