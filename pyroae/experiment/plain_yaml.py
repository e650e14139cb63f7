"""YAML restricted to plain data: mappings, lists, numbers, booleans, null and text, without tags, anchors and duplicate names."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from .. import sizes
from ..checks import short

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value, words in ((True, "true True TRUE"), (False, "false False FALSE")) for word in words.split()
}
_INT, _FLOAT = re.compile(r"[-+]?\d+"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def parse(text: str) -> Any:
    """Parse a text with one document. Quoted values are text, and so is everything that is not a number: ``2020-01-01``, ``yes``, ``0x10``.

    Raises:
        ValueError: not YAML; an anchor, alias or tag; a duplicate name; or too many values or levels.

    >>> parse("{prior: {class: Laplace, scale: 1e-3}, data: '12', hidden: [3, true]}")
    {'prior': {'class': 'Laplace', 'scale': 0.001}, 'data': '12', 'hidden': [3, True]}
    """
    try:
        events = _events(text)
        value = None
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                value = _value(event, events, 0)
        return value
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def _events(text: str) -> Iterator[yaml.Event]:
    documents = 0
    for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        documents += isinstance(event, yaml.DocumentStartEvent)
        if number > sizes.YAML_EVENTS or documents > 1:
            raise ValueError(f"expected one document of at most {sizes.YAML_EVENTS:,} values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise ValueError("expected plain YAML without anchors, aliases and tags")
        yield event


def _value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
    if depth > sizes.DEPTH:
        raise ValueError(f"expected lists and mappings nested at most {sizes.DEPTH} deep")
    if isinstance(event, yaml.ScalarEvent):
        return event.value if event.style else scalar(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        return [_value(item, events, depth + 1) for item in _until(events, yaml.SequenceEndEvent)]
    mapping = {}
    for event in _until(events, yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            raise ValueError("expected the names in a mapping as text")
        name = event.value
        if name in mapping:
            raise ValueError(f"the name {short(name)} occurs twice")
        mapping[name] = _value(next(events), events, depth + 1)
    return mapping


def _until(events: Iterator[yaml.Event], end: type) -> Iterator[yaml.Event]:
    for event in events:
        if isinstance(event, end):
            return
        yield event


def scalar(text: str) -> Any:
    """An unquoted word as a number, true, false, null or text.

    >>> [scalar(word) for word in ("3", "-.5", "1e3", "true", "null", "yes", "nan")]
    [3, -0.5, 1000.0, True, None, 'yes', 'nan']
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) < 400 and _INT.fullmatch(text):
        return int(text)
    return float(text) if len(text) < 400 and _FLOAT.fullmatch(text) else text
