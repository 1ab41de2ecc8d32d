"""How a field of a request is declared, and the table that is read out of the declarations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines.denoising.samplers import Sampler

WidgetKind = Literal["text", "choice", "number", "switch", "start"]
Place = Literal[
    "prompt", "words", "frame", "start", "model", "pace", "method", "orders", "loras", "chance"
]
"""The groups of the form, from top to bottom."""
ColumnKind = Literal["text", "number", "digits", "names"]


@dataclass(frozen=True, kw_only=True)
class CommandOption:
    """The option of `launch.py generate`.

    `name` is the parameter where it is not called as the field; `metavar` stands for the value.
    `argument` is given without a name, `several` can be given more than once.
    """

    name: str = ""
    metavar: str = ""
    argument: bool = False
    several: bool = False


@dataclass(frozen=True, kw_only=True)
class Widget:
    """The control in the form.

    A "choice" and a "start" are drawn by code of their own (`app/ui/create/tab.py`), all others
    from this alone. `low` is the lower end of a slider where the limit itself is not allowed;
    `most_lines` above 1 makes a text grow with what is typed.
    """

    kind: WidgetKind
    place: Place
    info: str = ""
    placeholder: str = ""
    step: float = 1
    low: float | None = None
    lines: int = 1
    most_lines: int = 1


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """The pair in the infotext. `text` gives its value, "" where the pair is left out; without it
    the value is written as it is."""

    key: str
    text: Callable[[Any], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """The column in the index of the gallery.

    `term` is what stands before the colon in a search, "" where nothing can; `words` are found
    without a term, too. "digits" are numbers that may be too large for the index, "names" LoRAs.
    """

    kind: ColumnKind
    term: str = ""
    words: bool = False


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """How the doors of the studio show a field.

    `help` is a phrase for the command line, `doc` the longer one of the docs, in Markdown, and
    `api` that of the API where it differs. `name` is how the doors call it where that is not the
    field's name: `width` and `height` are one `size`. `noun` names it in sentences. `fault` is the
    sentence for a value that it cannot have, with {value} in it, where limits say too little.
    `follows` names the fields with which its default changes, `default` says in words what that is.
    `only_for` tells which samplers read it, `needs` which other field has to be given; where it has
    no effect, `no_effect` says so, with {sampler} in it. A recipe leaves out a value that is the
    default, so that earlier versions read it, unless `always_written`.
    """

    label: str
    help: str
    widget: Widget
    doc: str = ""
    api: str = ""
    name: str = ""
    noun: str = ""
    fault: str = ""
    default: str = ""
    follows: tuple[str, ...] = ()
    only_for: Callable[[Sampler], bool] | None = None
    needs: str = ""
    no_effect: str = ""
    option: CommandOption = field(default_factory=CommandOption)
    infotext: Infotext | None = None
    column: Column | None = None
    always_written: bool = False


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """A field as the doors see it. `names` are those of the request: two for the size.

    `type` is that of its value; one that is not
    `required` has a `default`; `low` and
    `high` are its limits, None where there are none, `above_low` where `low` itself is too small.
    """

    name: str
    names: tuple[str, ...]
    spec: FieldSpec
    type: type
    required: bool
    default: Any
    low: float | None = None
    high: float | None = None
    above_low: bool = False

    @property
    def option(self) -> str:
        """The parameter of the command line."""
        return self.spec.option.name or self.name

    @property
    def bounds(self) -> tuple[str, str] | None:
        """The limits in words, lowest and highest."""
        if self.low is None or self.high is None:
            return None
        low = _number(self.low)
        return (f"just above {low}" if self.above_low else low), _number(self.high)

    @property
    def noun(self) -> str:
        """The field in a sentence."""
        return self.spec.noun or self.name.replace("_", " ")

    def text(self, request: BaseModel) -> str:
        """The value as the infotext has it; "" where it says nothing."""
        infotext = self.spec.infotext
        if self.spec.needs and getattr(request, self.spec.needs) is None:
            return ""
        if infotext is not None and infotext.text is not None:
            return infotext.text(request)
        value = getattr(request, self.names[0])
        return "" if value is None else _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def fields_of(model: type[BaseModel]) -> dict[str, RequestField]:
    """The declared fields by the names that the doors use, in order."""
    found: dict[str, RequestField] = {}
    for name, info in model.model_fields.items():
        spec = next(one for one in info.metadata if isinstance(one, FieldSpec))
        door = spec.name or name
        before = found[door].names if door in found else ()
        found[door] = _declared(door, (*before, name), spec, info)
    return found


def _declared(door: str, names: tuple[str, ...], spec: FieldSpec, info: FieldInfo) -> RequestField:
    limits = info.metadata
    at_least = next((one.ge for one in limits if isinstance(one, annotated_types.Ge)), None)
    above = next((one.gt for one in limits if isinstance(one, annotated_types.Gt)), None)
    at_most = next((one.le for one in limits if isinstance(one, annotated_types.Le)), None)
    low: Any = at_least if above is None else above
    high: Any = at_most
    return RequestField(
        name=door,
        names=names,
        spec=spec,
        type=_plain(info.annotation),
        required=info.is_required(),
        default=None if info.is_required() else info.default,
        low=low,
        high=high,
        above_low=above is not None,
    )


def _plain(annotation: Any) -> type:
    """`str` for `str | None`, `tuple` for `tuple[LoraUse, ...]`."""
    outer = get_origin(annotation) or annotation
    if outer is tuple or not get_args(annotation):
        found = outer
    else:
        found = next(one for one in get_args(annotation) if one is not type(None))
    assert isinstance(found, type)
    return found
