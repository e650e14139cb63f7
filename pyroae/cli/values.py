"""Text on the command line as values of the options' types."""

import typing
from typing import Any, Literal

from .. import registry, schema
from ..experiment import plain_yaml


class OptionError(Exception):
    """A value that an option does not accept; the message names the option."""


def value_of(annotation: Any, option: str, text: str) -> Any:
    """The value of an option, checked against its type."""
    try:
        value = from_text(text, annotation, option)
        if isinstance(value, dict) or (isinstance(value, str) and schema.kinds_in(annotation)):
            return value  # a part, checked later together with its arguments
        schema.read(value, annotation, option)
        return value
    except ValueError as error:
        raise OptionError(str(error)) from error


def from_text(text: str, annotation: Any, option: str) -> Any:
    """Convert the text of an option to a plain value of its type.

    >>> from_text("3", int | None, "--epochs"), from_text("2020", str, "--data"), from_text("[30,20]", int | list[int], "--hidden")
    (3, '2020', [30, 20])
    """
    choices = schema.alternatives(annotation)
    kinds = schema.kinds_in(annotation)
    if kinds and "." in text and text.replace(".", "").isidentifier():
        _import_class(text, kinds, option)
        return text
    only_text = str in choices and not {int, float, bool, list, registry.Plain} & {*choices, *map(typing.get_origin, choices)}
    if only_text:
        return None if text == "null" and type(None) in choices else text
    try:
        return plain_yaml.parse(text)
    except ValueError:
        return text


def _import_class(name: str, kinds: list[tuple[str, bool]], option: str):
    """Import the module of a user's class: ``my_parts`` for ``my_parts.Mine``."""
    if class_of(name, kinds) is None:
        registry.use(name.rpartition(".")[0])
    if class_of(name, kinds) is None:
        try:
            registry.find(kinds[0][0], name)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from error


def metavar(annotation: Any) -> str:
    """The placeholder in help for a value of a type."""
    words = [word for choice in schema.alternatives(annotation) if typing.get_origin(choice) is Literal for word in typing.get_args(choice)]
    if words:
        return f"{{{','.join(map(str, words))}}}"
    if schema.kinds_in(annotation):
        return "NAME"
    names = {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}
    return next((names[choice] for choice in schema.alternatives(annotation) if choice in names), "VALUE")


def class_of(name: str, kinds: list[tuple[str, bool]]) -> type | None:
    """The class with that name in the first kind that has one, or ``None``."""
    for kind, _ in kinds:
        try:
            return registry.find(kind, name)
        except ValueError:
            continue
    return None
