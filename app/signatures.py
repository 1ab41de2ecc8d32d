"""Functions whose parameters come from a table: what typer and gradio read of a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def with_parameters(function: F, parameters: Iterable[Parameter]) -> F:
    """`function`, seen as one that takes `parameters` where it says `*values` or `**values`.

    They come before its own keyword-only ones.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [
        p
        for p in signature.parameters.values()
        if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    first = [p for p in own if p.kind is not Parameter.KEYWORD_ONLY]
    seen = [*first, *parameters, *own[len(first) :]]
    named = {p.name: p.annotation for p in seen}
    # typer and gradio ask for the signature and for the annotations, and both have to agree.
    vars(function)["__signature__"] = signature.replace(parameters=seen)
    function.__annotations__ = named | {"return": signature.return_annotation}
    return function
