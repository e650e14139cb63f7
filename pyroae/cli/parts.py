"""``pyroae parts``: the parts that can be chosen by name."""

import inspect
import re
from collections.abc import Sequence

from ..checks import did_you_mean
from ..experiment.output import CommandOutput
from ..registry import parameters
from ..schema import words
from .options import part_choices

_FORMULA = re.compile(r"[:,]?\s*:math:`[^`]*`")  # formulas are for a page, not for a terminal


def parts(kind: Sequence[str] = ()) -> CommandOutput:
    """List the classes that can be chosen for each option; or, for one class, its arguments.

    Args:
        kind: prior, likelihood, posterior, encoder, decoder, condition, corruption, objective, optimizer, ...; then a name.
    """
    known = part_choices()
    if len(kind) == 2 and kind[0] in known and kind[1] not in known:
        return _arguments(kind[0], kind[1])
    for option in kind:
        if option not in known:
            raise ValueError(f"parts: there is no kind {option!r}" + did_you_mean(option, known))
    listed = {option: {name: _first_line(cls) for name, cls in sorted(known[option].items())} for option in kind or known}
    lines = [
        line for option in listed for line in ("", f"--{option}", *(f"  {name:22} {summary}" for name, summary in listed[option].items()))
    ]
    return CommandOutput("\n".join(lines), listed)


def _arguments(option: str, name: str) -> CommandOutput:
    """The arguments of a class, their types and defaults."""
    classes = part_choices()[option]
    if name not in classes:
        module = name.rpartition(".")[0]
        hint = f"; a class of your own needs --use {module}" if module else did_you_mean(name, classes)
        raise ValueError(f"parts: there is no {option} {name!r}{hint}")
    cls = classes[name]
    arguments = {
        argument: {"type": words(p.annotation), "default": None if p.default is p.empty else p.default}
        for argument, p in parameters(cls).items()
    }
    lines = [f"--{option} {name}", "", (inspect.getdoc(cls) or "").partition("\n>>>")[0].replace("`", "").rstrip(), ""]
    lines += [f"  --{f'{option}.{argument}':32} {about['type']} [{about['default']}]" for argument, about in arguments.items()]
    return CommandOutput("\n".join(lines), {option: {name: {argument: str(about["type"]) for argument, about in arguments.items()}}})


def _first_line(cls: type) -> str:
    return _FORMULA.sub("", (inspect.getdoc(cls) or "").strip().partition("\n")[0]).replace("`", "")
