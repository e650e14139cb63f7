"""Words of the command line as values of the types that options have."""

import argparse
import typing
from typing import Any, Literal

from .. import registry, schema
from ..experiment import plain_yaml


def value_of(annotation: Any, option: str, text: str) -> Any:
    """The value of an option, checked against its type."""
    try:
        value = from_text(text, annotation, option)
        if isinstance(value, dict) or (isinstance(value, str) and schema.kinds_in(annotation)):
            return value  # a part, whose arguments may follow
        schema.read(value, annotation, option)
        return value
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def from_text(text: str, annotation: Any, option: str) -> Any:
    """A word of the command line as the plain value that its type asks for.

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
    """Import the module of a class of the user's own, which the command line names: ``my_parts`` for ``my_parts.Mine``."""
    if class_of(name, kinds) is None:
        registry.use(name.rpartition(".")[0])
    if class_of(name, kinds) is None:
        try:
            registry.find(kinds[0][0], name)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from error


def metavar(annotation: Any) -> str:
    """The placeholder for a value of a type in help."""
    words = [word for choice in schema.alternatives(annotation) if typing.get_origin(choice) is Literal for word in typing.get_args(choice)]
    if words:
        return f"{{{','.join(map(str, words))}}}"
    if schema.kinds_in(annotation):
        return "NAME"
    names = {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}
    return next((names[choice] for choice in schema.alternatives(annotation) if choice in names), "VALUE")


def class_of(name: str, kinds: list[tuple[str, bool]]) -> type | None:
    """The class of that name in the first of the kinds that has one."""
    for kind, _ in kinds:
        try:
            return registry.find(kind, name)
        except ValueError:
            continue
    return None
