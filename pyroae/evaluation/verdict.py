"""How far an estimate of log p(x) can be trusted: in three states, with a reason and what to do about it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["no sign of trouble", "uncertain", "wrong"]

_REMEDIES = {  # in Python, on the command line
    "auto": ('score it with proposal="auto", the default', "score it with --proposal auto, the default"),
    "ais": ("pa.cross_check compares it with annealing on a few examples", "--check 20 compares it with annealing"),
    "particles": ("take at least 25 particles", "take at least --particles 25"),
    "annealing": ("take pa.ais, and pa.bdmc with the same settings", "take pa.ais in Python"),
    "bdmc": ("pa.bdmc with the same settings says how far it can be trusted", "pa.bdmc in Python says how far it can be trusted"),
}


@dataclass(frozen=True)
class Verdict:
    """What a printed score is worth.

    >>> print(Verdict("uncertain", "k-hat needs 25 particles, got 10", "particles"))
    uncertain: k-hat needs 25 particles, got 10; take at least 25 particles
    """

    state: State
    reason: str
    remedy: str | None = None  # what to do: a key of ``_REMEDIES``
    low_by: float = 0.0  # nats/example by which the mean may be too low at least, beyond its stated error

    @property
    def mark(self) -> str:
        """What stands beside a number: nothing, or the state in brackets."""
        return "" if self.state == "no sign of trouble" else f" [{self.state}]"

    def said(self, command_line: bool = False) -> str:
        """The verdict in words, its remedy in terms of Python or of the command line."""
        advice = f"; {_REMEDIES[self.remedy][command_line]}" if self.remedy else ""
        return f"{self.state}: {self.reason}{advice}"

    def as_dict(self) -> dict:
        """The same as plain data."""
        return {"state": self.state, "reason": self.reason, "remedy": self.remedy, "low_by": self.low_by}

    __str__ = said
