"""How an option is declared: once, as a field of a frozen dataclass.

Each group of options is a subclass of `Options` beside the code that it steers:

- `hubmerge.names.options.NamingOptions`: names, precision and layout
- `hubmerge.planning.options.PlanOptions`: what is published
- `hubmerge.publish.options.PushOptions`: where and how it is published
- `hubmerge.cli.options`: what only the command has

The command's options are made of the fields, the parameters of the public functions are tested
against them, and the inputs of the GitHub Action are written from them. These modules import
nothing that is slow, so that ``hubmerge --help`` is immediate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from hubmerge.errors import UsageError

T = TypeVar("T", bound="Options")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", start=1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", start=1)},
}


@dataclass(frozen=True, slots=True)
class Option:
    """What a user is told about an option, and how its value is read.

    Attributes:
        help: one sentence.
        metavar: what stands for the value in the help.
        choices: all values that are allowed, if they are few.
        if_unset: what applies if the option is not given, if the field's default does not say it.
        parse: turns a value and the option's flag into the field's value; raises UsageError.
        short: a flag of one letter, as an alternative.
        is_input: whether the option is an input of the GitHub Action.
        is_secret: whether the value must never be shown.
    """

    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    if_unset: str | None = None
    parse: Callable[[Any, str], Any] | None = None
    short: str | None = None
    is_input: bool = True
    is_secret: bool = False


def option(default: Any, help: str, **about: Any) -> Any:  # noqa: A002 - click's word
    """Declare a field of `Options`; `about` is the rest of `Option`."""
    declared = Option(help, **about)
    return field(default=default, repr=not declared.is_secret, metadata={"option": declared})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all groups: checks each value's type, and remembers what was given.

    A wrong type is a TypeError and a wrong value a UsageError that names the flag.

    Attributes:
        given: the fields that the caller named, even if with their default.
        title: heads the group in the help.
    """

    given: ClassVar[frozenset[str]]
    title: ClassVar[str] = "Options"

    def __new__(cls, **given: Any) -> Any:
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        """Check and convert all values."""
        hints = get_type_hints(type(self))
        for declared in fields(self):
            value = getattr(self, declared.name)
            about: Option | None = declared.metadata.get("option")
            if value is not None and about is not None:
                if isinstance(value, list):
                    value = tuple(value)
                if about.parse is not None:
                    value = about.parse(value, flag_of(declared))
                if about.choices and value not in about.choices:
                    raise UsageError(
                        f"{flag_of(declared)} {value!r}: is not known",
                        f"Use one of: {', '.join(about.choices)}.",
                    )
                if value == "":
                    raise UsageError(f"{flag_of(declared)}: is empty")
                object.__setattr__(self, declared.name, value)
            if not has_type(value, hints[declared.name]):
                kind = type(value).__name__
                raise TypeError(f"{declared.name} must be {declared.type}, not {kind}")

    @classmethod
    def among(cls: type[T], arguments: Mapping[str, Any]) -> T:
        """Return the group's options among a function's arguments; a default is not given."""
        return cls(
            **{
                declared.name: arguments[declared.name]
                for declared in fields(cls)
                if declared.name in arguments and arguments[declared.name] is not declared.default
            }
        )

    def given_values(self) -> dict[str, Any]:
        """Return what the caller named, with its values."""
        return {name: getattr(self, name) for name in self.given}


def declared_in(*groups: type[Options]) -> Iterator[tuple[Field[Any], Option]]:
    """Yield the options of some groups: the field, and what is declared about it."""
    for group in groups:
        for declared in fields(group):
            if "option" in declared.metadata:
                yield declared, declared.metadata["option"]


def flag_of(declared: Field[Any]) -> str:
    """Return the flag of an option."""
    return "--" + declared.name.replace("_", "-")


def has_type(value: Any, hint: Any) -> bool:
    """Return whether `value` is of an annotated type; a bool is no int."""
    if hint == tuple[str, ...]:
        return type(value) is tuple and all(type(text) is str for text in value)
    takes_bool = hint is bool or bool in get_args(hint)
    return isinstance(value, hint) and (takes_bool or not isinstance(value, bool))


def parse_path(value: Any, flag: str) -> Path:
    """Return a path; a variable that is not set must not mean the current directory."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{flag} must be a path, not {type(value).__name__}")
    if value == "":
        raise UsageError(f"{flag}: is empty")
    return Path(value)


def parse_size(value: Any, flag: str) -> int:
    """Return the bytes that 2000000000, "2GB", "500MB" or "4GiB" mean."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"{flag} must be a number of bytes, or a text such as '2GB'")
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise UsageError(
            f"{flag} {value!r}: is not a size", "Use a size such as 2000000000, 2GB or 4GiB."
        )
    size = int(Decimal(match[1]) * _UNITS[(match[2] or "B").lower()])
    if size < 1:
        raise UsageError(f"{flag} {value!r}: is less than one byte", "Use a size such as 2GB.")
    return size
