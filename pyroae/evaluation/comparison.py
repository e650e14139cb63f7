"""The difference of two models' log p(x) on the same data, with its paired error."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .importance import Estimate, log_likelihood
from .verdict import STATES


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """log p_a(x) - log p_b(x) of each example in nats."""

    values: Tensor  # (N,)
    mc_se: float  # Monte-Carlo standard error of the mean
    mark: str = ""  # printed after the difference: the worse of the two verdicts, where the error may be larger than stated

    @property
    def difference(self) -> float:
        """Its mean; above 0 where a is better."""
        return self.values.mean().item()

    @property
    def se(self) -> float:
        """Its paired standard error over the data, Monte-Carlo error of both scores included; NaN for a single example.

        It is computed from the differences, so it also holds for scores by different proposals. It does not include bias: where a
        score may be too low, the difference carries its mark.
        """
        return (self.values.var() / len(self.values)).sqrt().item()

    @property
    def wins(self) -> float:
        """Share of the examples with a higher log p(x) under a; ties count half."""
        return ((self.values > 0).double() + 0.5 * (self.values == 0)).mean().item()

    def __str__(self) -> str:
        sure = "" if abs(self.difference) > 1.96 * self.se else "; within 1.96 s.e. of none"
        return (
            f"a - b = {self.difference:+.3f}{self.mark} nats/example (paired s.e. {self.se:.2g}, of which Monte Carlo {self.mc_se:.2g}), "
            f"a wins on {self.wins:.1%} of the examples{sure}"
        )

    __repr__ = __str__


def compare(a: Any, b: Any, x: Any = None, **settings: Any) -> Comparison:
    """The difference of two models' log p(x) on the same data, with its paired standard error.

    Args:
        a, b: Autoencoders, pairs ``(model, guide)`` of Pyro programs, or their Estimates on the same data, for which x is not needed.
        x: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        settings: of ``pa.log_likelihood``, such as ``particles``.

    Raises:
        ValueError: Estimates of different numbers of examples, or models without x.

    >>> import pyroae as pa, torch
    >>> compare(vae, vae, torch.rand(10, 16).round(), particles=50).difference
    0.0
    """
    first, second = (_scored(each, x, settings) for each in (a, b))
    if len(first.values) != len(second.values):
        raise ValueError(f"compare: expected estimates on the same data, got {len(first.values)} and {len(second.values)} values")
    errors = (first.errors.square() + second.errors.square()).sum().sqrt().item() / len(first.values)
    verdicts = sorted((first.verdict, second.verdict), key=lambda verdict: STATES.index(verdict.state))
    return Comparison(first.values - second.values, errors, verdicts[-1].mark)


def _scored(each: Any, x: Any, settings: dict) -> Estimate:
    if isinstance(each, Estimate):
        return each
    if x is None:
        raise ValueError(f"compare: expected the data x beside models, or two Estimates, got a {type(each).__name__} and no x")
    model, guide = each if isinstance(each, tuple) else (each, None)
    return log_likelihood(model, x, guide, **settings)
