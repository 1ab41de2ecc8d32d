"""What is told of a subject before it is learned: too few or too many photos, and a word that the
model knows already."""

from __future__ import annotations

from pipelines.errors import RequestError
from pipelines.text import seen_words
from training.adapter_config import ENOUGH_PHOTOS, FEWEST_PHOTOS, MOST_PHOTOS
from training.config import RunConfig
from training.data.sources import Sources


def check(config: RunConfig, sources: Sources) -> None:
    """Tells what a person should know, before anything is computed. Raises RequestError."""
    count = len(sources.manifest.samples)
    if count > MOST_PHOTOS:
        raise RequestError(
            "data",
            f"There are {count:,} pictures; a subject is learned from at most {MOST_PHOTOS}.",
            f"Set data.limit = {ENOUGH_PHOTOS}, or learn captions with: launch.py train lora",
        )
    if count < FEWEST_PHOTOS:
        photos = "is only one picture" if count == 1 else f"are only {count} pictures"
        sources.tell(
            f"There {photos} of the subject: the model may learn the picture instead of the"
            f" subject. {FEWEST_PHOTOS} to {ENOUGH_PHOTOS} from several sides and places are"
            " better."
        )
    elif count > ENOUGH_PHOTOS:
        sources.tell(
            f"There are {count} pictures of the subject; {FEWEST_PHOTOS} to {ENOUGH_PHOTOS} are"
            f" enough, and more take longer. With data.limit = {ENOUGH_PHOTOS} only so many are"
            " used."
        )
    word = config.subject.word
    if seen_words.is_known(word, sources.text_row):
        other = seen_words.rare_word(sources.text_row)
        advice = f" “{other}” means nothing to it." if other else ""
        sources.tell(
            f"The model knows the word “{word}”: other pictures with it will change as well."
            + advice
        )
