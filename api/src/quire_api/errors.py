"""One error for bad input, whatever the way it came in: a resource, a flag, a file.

Every line of the message is `path: what is wrong (the fix)`. pydantic is imported only to explain its reports: a
command that needs no types of ours, as `quire fetch`, starts without it.
"""

from __future__ import annotations  # for the names below

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

__all__ = ["InvalidInput", "explain", "nearest"]


class InvalidInput(ValueError):
    """The user's input is wrong. `problems` has one finished sentence for each mistake."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def nearest(name: str, known: Iterable[str]) -> str:
    """The fix for a name nobody knows: `did you mean "x"?`, or the list of what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(names)}"


def explain(
    error: ValidationError, model: type[BaseModel], show: Callable[[tuple[str | int, ...]], str]
) -> InvalidInput:
    """Turn pydantic's report on `model` into sentences; `show` writes a location as the user wrote it."""
    return InvalidInput(f"{show(detail['loc'])}: {_problem(detail, model)}" for detail in error.errors())


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    seen = detail.get("input")
    shown = f", not {seen!r}" if isinstance(seen, str | int | float | bool) else ""
    match detail["type"]:
        case "extra_forbidden":
            *parents, name = detail["loc"]
            return f"unknown field; {nearest(str(name), _names_at(model, parents))}"
        case "missing":
            return "required, but not set"
        case "string_pattern_mismatch":
            return f"must match {detail['ctx']['pattern']}{shown}"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
    return (
        detail["msg"].replace("Input should", "must").replace("String should", "must").replace("List should", "must")
        + shown
    )


def _names_at(model: type[BaseModel], parents: list[str | int]) -> list[str]:
    """The field names which the object at `parents` may have."""
    for step in parents:
        if isinstance(step, int):
            continue
        field = next((f for n, f in model.model_fields.items() if step in (n, f.alias)), None)
        nested = _model_in(field.annotation) if field else None
        if nested is None:
            return []
        model = nested
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model class inside `X`, `X | None` or `list[X]`."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _model_in(part):
            return found
    return None
