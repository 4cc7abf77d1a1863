"""Knobs: settings of a stand-in that can change while it runs. Typed dataclass fields, choices, scripted answers."""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class KnobError(ValueError):
    """The knob does not exist, or cannot have that value."""


@dataclass
class Turnable:
    """A stand-in's knobs, which are the fields; numbers are never below 0."""

    CHOICES: ClassVar[dict[str, tuple[str | None, ...]]] = {}
    ANSWER_CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {}  # allowed values of these fields of a scripted answer
    ANSWER_FIELDS: ClassVar[set[str]] = set()  # further fields that it can have; `match` is required

    def turn(self, name: str, value: object) -> None:
        """Set one knob; raises KnobError, naming the knob and what was expected."""
        self.check(name, value)
        setattr(self, name, value)

    def check(self, name: str, value: object) -> None:
        """Raise KnobError, naming the knob and what was expected, if the knob cannot have this value."""
        hints = {field.name: typing.get_type_hints(type(self))[field.name] for field in dataclasses.fields(self)}
        if name not in hints:
            raise KnobError(f"no knob {name!r}; there are {', '.join(sorted(hints))}")
        if not _fits(value, hints[name]):
            raise KnobError(f"knob {name}: {value!r} is not {getattr(hints[name], '__name__', hints[name])}")
        if name in self.CHOICES and value not in self.CHOICES[name]:
            raise KnobError(f"knob {name}: {value!r} is not one of {', '.join(map(str, self.CHOICES[name]))}")
        if name == "answers":
            self._check_answers(typing.cast(list[dict[str, Any]], value))

    def as_dict(self) -> dict[str, Any]:
        """Return all knobs with their values, for JSON."""
        return dataclasses.asdict(self)

    def _check_answers(self, answers: Sequence[dict[str, Any]]) -> None:
        for answer in answers:
            strange = answer.keys() - self.ANSWER_FIELDS - self.ANSWER_CHOICES.keys() - {"match"}
            if strange:
                raise KnobError(f"knob answers: no field {', '.join(sorted(strange))}")
            for name, choices in self.ANSWER_CHOICES.items():
                if name in answer and answer[name] not in choices:
                    raise KnobError(f"knob answers: {name} {answer[name]!r} is not one of {', '.join(choices)}")
            try:
                re.compile(answer["match"])
            except (KeyError, TypeError, re.error) as err:
                raise KnobError(f"knob answers: match of {answer!r} is not a regular expression") from err


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if typing.get_origin(hint) is list:
        inner = typing.get_args(hint)[0]
        return isinstance(value, list) and all(isinstance(one, typing.get_origin(inner) or inner) for one in value)
    return isinstance(value, typing.get_origin(hint) or hint)
