"""What a recipe says of a LoRA and of the subject that is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from training.recipe_table import RecipeTable
from training.scenes.captions import article

MAX_RANK = 1024
FEWEST_PHOTOS, ENOUGH_PHOTOS, MOST_PHOTOS = 3, 30, 300
"""Of a subject: below the first it learns the photo instead, more than the second bring nothing,
and more than the last are refused."""


class LoraConfig(RecipeTable):
    """The change that is trained: `up @ down` of rank `rank` beside each layer of `targets`.

    It is added `alpha / rank` times, once where `alpha` is not given. `targets` are the attention
    layers, those and the feed-forward ones, or every linear layer, also those that tell the net
    the time and the size, which a small data set easily breaks. `ranks` gives layers whose path
    ends so another rank. `dropout` leaves out that share of what goes into the change. With `dora`
    the sizes of the rows of each weight are learned beside their directions (arXiv 2402.09353): a
    step takes longer, and the result is neither merged with others nor resized.
    """

    rank: int = Field(default=16, ge=1, le=MAX_RANK)
    alpha: float | None = Field(default=None, gt=0, le=100_000)
    targets: Literal["attention", "attention+feed-forward", "all"] = "attention+feed-forward"
    ranks: dict[str, int] = Field(default_factory=dict)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dora: bool = False

    @field_validator("ranks")
    @classmethod
    def _ranks(cls, ranks: dict[str, int]) -> dict[str, int]:
        if any(not 1 <= rank <= MAX_RANK for rank in ranks.values()):
            raise ValueError(f"every rank lies between 1 and {MAX_RANK}")
        return ranks


class SubjectConfig(RecipeTable):
    """Who or what is in the pictures.

    `word` is a word that means nothing yet, `kind` what it is one of: "sks" and "dog". Pictures
    without a caption get `template`, in which {subject} is "sks dog". A picture on a plain
    background of a named colour gets one of `wordings` instead, by dice: there {colour} is the
    colour, and {a_colour} the same with its article. A share of those, `moved`, is shown smaller
    at a side, and called as one of `places` says, in which {place} is the side.

    `prior` keeps the kind what it was. "base": of `share` of the pictures the net is asked about
    the kind instead, or about one of the captions `keep`, and has to say what it said before it
    learned (no further pictures are needed). "pictures": in place of `share` of the pictures it
    learns so many `pictures` of the kind that it has painted itself before. "none": nothing does.
    `weight` is that of its error.
    """

    word: str = Field(default="sks", max_length=40)
    kind: str = Field(default="", max_length=80)
    template: str = Field(default="a photo of {subject}", max_length=400)
    wordings: tuple[Annotated[str, Field(max_length=400)], ...] = Field(default=(), max_length=100)
    places: tuple[Annotated[str, Field(max_length=400)], ...] = Field(default=(), max_length=100)
    moved: float = Field(default=0.0, ge=0, lt=1)
    prior: Literal["base", "pictures", "none"] = "base"
    share: float = Field(default=0.5, gt=0, lt=1)
    pictures: int = Field(default=50, ge=1, le=10_000)
    weight: float = Field(default=1.0, gt=0, le=100)
    keep: tuple[Annotated[str, Field(max_length=400)], ...] = Field(default=(), max_length=1000)

    @field_validator("word", "kind")
    @classmethod
    def _word(cls, text: str) -> str:
        cleaned = " ".join(text.split())
        if not cleaned.isprintable():
            raise ValueError("it has characters that cannot be printed")
        return cleaned

    @field_validator("template")
    @classmethod
    def _template(cls, text: str) -> str:
        if "{subject}" not in text:
            raise ValueError("it has to have {subject} in it")
        return text

    @field_validator("wordings", "places")
    @classmethod
    def _wordings(cls, wordings: tuple[str, ...]) -> tuple[str, ...]:
        if any("{subject}" not in text for text in wordings):
            raise ValueError("each of them has to have {subject} in it")
        return wordings

    @property
    def subject(self) -> str:
        """What the subject is called in prompts."""
        return f"{self.word} {self.kind}".strip()

    @property
    def caption(self) -> str:
        """The caption of a picture of the subject that has none of its own."""
        return self.template.replace("{subject}", self.subject)

    def named(self, text: str, *, colour: str = "", place: str = "") -> str:
        """`text` with its words in place of {subject}, {colour}, {a_colour} and {place}."""
        words = {
            "{subject}": self.subject,
            "{a_colour}": article(colour),
            "{colour}": colour,
            "{place}": place,
        }
        for name, word in words.items():
            text = text.replace(name, word)
        return text

    @property
    def of_the_kind(self) -> str:
        """The same words about any of its kind."""
        return self.template.replace("{subject}", self.kind)
