"""Whether an estimate of log p(x) can be trusted: one of three states, with a reason and a remedy."""

from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["no sign of trouble", "uncertain", "wrong"]
STATES = get_args(State)  # from good to bad

_AUTO = "looks for modes and fits a proposal to each example, for 2,000 to 6,000 decoder evaluations more an example"
_CHECK = "compares 20 examples with annealing from the prior, for about 150,000 decoder evaluations each"
_REMEDIES = {  # what to do and what it costs: in Python, on the command line
    "auto": (f'proposal="auto", the default, {_AUTO}', f"--proposal auto, the default, {_AUTO}"),
    "proposal": (f'proposal="auto" {_AUTO}', f"proposal='auto' in Python {_AUTO}"),
    "ais": (
        "pa.ais(model, x[score.khat > .7]) settles it, for about 77,000 decoder evaluations each",
        f"--check 20 {_CHECK}",
    ),
    "check": (f"pa.cross_check(score, model, x) {_CHECK}", f"--check 20 {_CHECK}"),
    "prior": (
        "compare it with proposal=pa.proposals.prior, at the same cost, which misses no mode but needs more particles",
        "compare it with --proposal prior, at the same cost, which misses no mode but needs more --particles",
    ),
    "data": ("score.values shows which; the model gives them no density", "the file of rows shows which; the model gives them no density"),
    "particles": ("take at least 25 particles", "take at least --particles 25"),
    "annealing": (
        "pa.ais scores all of x, for about 77,000 decoder evaluations each, and pa.bdmc says how far it can be trusted",
        "pa.ais in Python scores all of it, for about 77,000 decoder evaluations each",
    ),
    "temperatures": (
        "twice the temperatures cost twice as much; pa.bdmc with the same settings, at three times the cost, brackets the error",
        "twice the temperatures in Python cost twice as much",
    ),
    "bdmc": (
        "pa.bdmc with the same settings, at three times the cost, says how far it can be trusted",
        "pa.bdmc in Python, at three times the cost, says how far it can be trusted",
    ),
}


@dataclass(frozen=True)
class Verdict:
    """Whether a score can be trusted: a state, the reason, and what would settle it at what cost.

    >>> print(Verdict("uncertain", "k-hat needs 25 particles, got 10", "particles"))
    uncertain: k-hat needs 25 particles, got 10; take at least 25 particles
    """

    state: State
    reason: str
    remedy: str | None = None  # a key of ``_REMEDIES``
    low_by: float = 0.0  # how much too low the mean may be in addition to its stated error, nats/example

    @property
    def mark(self) -> str:
        """Printed after a number: nothing, or the state in brackets."""
        return "" if self.state == "no sign of trouble" else f" [{self.state}]"

    def said(self, command_line: bool = False) -> str:
        """The verdict as text, its remedy for Python or for the command line."""
        advice = f"; {_REMEDIES[self.remedy][command_line]}" if self.remedy else ""
        return f"{self.state}: {self.reason}{advice}"

    def as_dict(self) -> dict:
        """The verdict as plain data, with the remedy as text for the command line."""
        advice = _REMEDIES[self.remedy][True] if self.remedy else None
        return {"state": self.state, "reason": self.reason, "remedy": self.remedy, "low_by": self.low_by, "advice": advice}

    @classmethod
    def from_dict(cls, written: dict) -> "Verdict":
        """The verdict that ``as_dict`` gave."""
        return cls(written["state"], written["reason"], written["remedy"], written["low_by"])

    __str__ = said
