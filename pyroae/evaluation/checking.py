"""Does the model look like the data, and the guide like the posterior?"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import programs
from ..checks import whole_number
from ..programs import Program
from ..training.batches import Args, takes_inputs
from .annealed import simulate
from .density import Density
from .importance import MOST, UNRELIABLE, Source, as_proposal
from .particles import on_blocks, prepared, rows_at_once
from .resampling import resampled
from .verdict import Verdict

Statistic = Callable[[Tensor], Tensor]  # (..., *event) -> (...)

_BINS = 10
_SURE = 3.0  # standard errors


@dataclass(frozen=True, repr=False, eq=False)
class Check:
    """Data beside replicates of them, and the share of entries inside their predictive intervals, beside that expected of the model.

    Where k-hat is above 0.7, draws of z are no draws of p(z|x), and what depends on them is marked.
    """

    observed: dict[str, float]  # each statistic's mean over the data
    replicated: dict[str, Tensor]  # (draws,) the same of each replicate
    pit: Tensor  # (N, *event) share of an entry's replicates below it, ties split at random
    reference: Tensor  # (N, *event) the same of data simulated from the model: what pit is distributed as where the model is right
    khat: Tensor  # (N,) of the weights by which z was drawn
    reference_khat: Tensor  # (N,) the same for the simulated data

    @property
    def p_values(self) -> dict[str, float]:
        """Share of replicates whose statistic is above the observed one, ties counting half; suspicious near 0 and 1."""
        above = lambda copies, value: ((copies > value).double() + 0.5 * (copies == value)).sum().item()  # noqa: E731
        return {
            name: (above(self.replicated[name], value) + 0.5) / (len(self.replicated[name]) + 1) for name, value in self.observed.items()
        }

    @property
    def verdict(self) -> Verdict:
        """What the intervals are worth: whether z was drawn from p(z|x), of the data and of the simulated data."""
        shares = [(khat > UNRELIABLE).double().mean().item() for khat in (self.khat, self.reference_khat)]
        if self.khat.isnan().all():
            return Verdict("uncertain", "k-hat, which says whether z is drawn from p(z|x), needs 25 particles", "particles")
        text = f"k-hat is above .7 for {shares[0]:.1%} of the examples and {shares[1]:.1%} of the simulated ones"
        if max(shares) == 0:
            return Verdict("no sign of trouble", text)
        return Verdict("wrong" if max(shares) > MOST else "uncertain", f"{text}, whose z are not drawn from p(z|x)", "proposal")

    def coverage(self, level: float) -> float:
        """Share of all entries that lie in their central interval of that level; for the right model ``expected_coverage``."""
        return self._covered(self.pit, level).mean().item()

    def expected_coverage(self, level: float) -> float:
        """The same share for data simulated from the model: above ``level``, since z has seen x."""
        return self._covered(self.reference, level).mean().item()

    def coverage_z(self, level: float) -> float:
        """(coverage - expected coverage) / standard error of the difference, over the examples."""
        ours, expected = self._covered(self.pit, level), self._covered(self.reference, level)
        se = (ours.var() / len(ours) + expected.var() / len(expected)).sqrt()
        return ((ours.mean() - expected.mean()) / se).nan_to_num().item()

    @staticmethod
    def _covered(pit: Tensor, level: float) -> Tensor:
        """The share of each example's entries, ``(N,)``."""
        return ((2 * pit - 1).abs() < level).double().reshape(len(pit), -1).mean(1)

    def __str__(self) -> str:
        rows = [
            f"{name}: {value:.4g}, replicated {self.replicated[name].mean():.4g}, p = {self.p_values[name]:.2g}{self.verdict.mark}"
            for name, value in self.observed.items()
        ]
        return "\n".join([*rows, *(self._coverage_line(level) for level in (0.5, 0.9))])

    def _coverage_line(self, level: float) -> str:
        text = f"entries in their {level:.0%} interval: {self.coverage(level):.1%}, of data simulated from the model "
        text += f"{self.expected_coverage(level):.1%}{self.verdict.mark}"
        z = self.coverage_z(level)
        if abs(z) < _SURE:
            return text
        return f"{text}: the model's intervals are too {'narrow' if z < 0 else 'wide'} (by {abs(z):.0f} standard errors)"

    __repr__ = __str__


def _numbers(x: Tensor) -> Tensor:
    """The numbers of each example in one dimension, ``(draws, N, numbers)``."""
    return x.reshape(*x.shape[:2], -1)


STATISTICS: dict[str, Statistic] = {
    "mean": lambda x: _numbers(x).mean(-1),
    "standard deviation": lambda x: _numbers(x).std(-1, correction=0),
    "smallest": lambda x: _numbers(x).amin(-1),
    "largest": lambda x: _numbers(x).amax(-1),
}


def predictive_check(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    draws: int = 100,
    statistics: dict[str, Statistic] | None = None,
    particles: int = 500,
    proposal: Source = "guide",
    seed: int | None = 0,
    progress: bool = False,
) -> Check:
    """Posterior-predictive check (Gelman et al. 1996): z from p(z|x) by importance resampling, then replicates of x from p(x|z).

    Since z has seen x, p-values are drawn towards a half (an extreme one says that the model does not fit), and entries lie in their
    intervals more often than these say, however good the model is. So the coverage is compared with that of as many examples simulated
    from the model. Were z drawn from the guide itself, a guide that is worse on simulated data would look like a wrong model.

    Args:
        model: an Autoencoder, or any Pyro model of a batch with one observed site, x.
        x: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        draws: replicates.
        statistics: functions from ``(draws, N, *event)`` to ``(draws, N)`` by name; by default mean, deviation, extremes.
        particles: draws of z per example, from which ``draws`` are resampled.
        proposal: as for ``pa.log_likelihood``; ``"auto"`` where the guide is inadequate, which takes longer.
        seed: of the draws.
        progress: show progress bars.

    Raises:
        ValueError: data with missing entries, or a prior from which no data can be simulated.

    >>> sorted(predictive_check(vae, x, draws=10).p_values)
    ['largest', 'mean', 'smallest', 'standard deviation']
    """
    whole_number("predictive_check", draws=draws, particles=particles)
    model, guide = programs.pair(model, guide)
    statistics = statistics or STATISTICS
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        x = args[0]
        if x.isnan().any():
            raise ValueError(
                "predictive_check: expected data without missing entries, got NaN; replicated data have none, so they would differ in that"
            )
        observed = {name: of(x[None]).double().mean().item() for name, of in statistics.items()}
        source = draws, particles, as_proposal(proposal), progress
        replicated, pit, khat = _replicated(model, guide, args, statistics, *source)
        _, reference, reference_khat = _replicated(model, guide, _simulated(model, guide, args), {}, *source)
    return Check(observed, {name: v.cpu() for name, v in replicated.items()}, *(v.cpu() for v in (pit, reference, khat, reference_khat)))


def _replicated(
    model: Program, guide: Program, args: Args, statistics: dict[str, Statistic], draws: int, *source
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The statistics' means over the examples of each replicate; the share of replicates below each entry of x; and k-hat."""
    x = args[0]
    replicated = {name: torch.zeros(draws, dtype=torch.float64, device=x.device) for name in statistics}
    below, equal, khat = torch.zeros_like(x), torch.zeros_like(x), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for each in resampled(model, guide, args, draws, *source):
        khat[each.rows], done = each.khat, 0
        for copies in each.pieces:
            for name, of in statistics.items():
                replicated[name][done : done + len(copies)] += of(copies).double().sum(1) / len(x)
            below[each.rows] += (copies < x[each.rows]).sum(0)
            equal[each.rows] += (copies == x[each.rows]).sum(0)
            done += len(copies)
    return replicated, (below + torch.rand_like(x) * (equal + 1)) / (draws + 1), khat


def _simulated(model: Program, guide: Program, args: Args) -> Args:
    """Examples like ``args`` simulated from the model, in bounded memory."""
    parts = on_blocks(lambda _, part: simulate(model, part)[0], model, args, rows_at_once(model, guide, args))
    return tuple(torch.cat(columns) for columns in zip(*parts))


@dataclass(frozen=True, repr=False, eq=False)
class Ranks:
    """Ranks of the true z of simulated data among the guide's draws: uniform where the guide is the exact posterior."""

    ranks: Tensor  # (N, numbers) from 0 to draws
    draws: int

    @property
    def p_values(self) -> Tensor:
        """``(numbers,)`` of a chi-square test of uniformity over ten bins, fewer for fewer ranks, for each latent dimension."""
        many, values = min(_BINS, self.draws + 1), self.draws + 1
        bins = (self.ranks * many // values).long()
        edges = torch.arange(values) * many // values
        expected = torch.bincount(edges, minlength=many) / values * len(bins)
        counts = torch.stack([(bins == b).sum(0) for b in range(many)], 1)  # (numbers, bins)
        statistic = ((counts - expected).square() / expected).sum(1)
        return torch.special.gammaincc(torch.tensor((many - 1) / 2, dtype=statistic.dtype), statistic / 2)

    @property
    def shift(self) -> Tensor:
        """``(dimensions,)`` mean rank, from 0 to 1, less 1/2: below 0 the guide's draws are too high, above 0 too low."""
        return self.ranks.double().mean(0) / self.draws - 0.5

    @property
    def shift_p_values(self) -> Tensor:
        """``(dimensions,)`` two-sided, of the mean rank under unshifted ranks, spread as uniform ones or as these, whichever is more."""
        sd = (self.spread.clamp(min=1) * (self.draws + 2) / (12 * self.draws * len(self.ranks))).sqrt()
        return torch.special.erfc(self.shift.abs() / sd / math.sqrt(2.0))

    @property
    def spread(self) -> Tensor:
        """``(dimensions,)`` variance of the ranks over that of uniform ones: above 1 the guide is too narrow, below 1 too wide.

        That holds where the guide is not shifted: see ``shift``.
        """
        return self.ranks.double().var(0) / (((self.draws + 1) ** 2 - 1) / 12)

    def __str__(self) -> str:
        few = 0.01 / len(self.p_values)
        shifted = self.shift_p_values < few
        bad = shifted | (self.p_values < few)
        if not bad.any():
            return (
                f"no sign of miscalibration of the guide on {len(self.ranks):,} simulated examples (smallest p {self.p_values.min():.2g})"
            )
        rest = bad & ~shifted
        counts = {
            "shifted": shifted,
            "too narrow": rest & (self.spread > 1.1),
            "too wide": rest & (self.spread < 0.9),
            "of another shape": rest & (self.spread >= 0.9) & (self.spread <= 1.1),
        }
        kinds = ", ".join(f"{int(count.sum())} {name}" for name, count in counts.items() if count.any())
        return f"the guide is not calibrated in {int(bad.sum())} of {len(bad)} latent dimensions ({kinds})"

    __repr__ = __str__


def sbc(model: Any, x: Any, guide: Program | None = None, *, draws: int = 99, seed: int | None = 0) -> Ranks:
    """Simulation-based calibration of the guide (Talts et al. 2018): for data simulated from the model, whose z is known.

    Args:
        model: an Autoencoder, or any Pyro model of a batch with real-valued latents and one observed site, x.
        x: data of which only the shape is used, and the y of a tuple ``(x, y)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        draws: from the guide for each example.
        seed: of the draws.

    >>> sbc(vae, x, draws=9).ranks.shape
    torch.Size([20, 2])
    """
    whole_number("sbc", draws=draws)
    model, guide = programs.pair(model, guide)
    if takes_inputs(model):
        raise ValueError("sbc: expected a guide of x, which is simulated, but this model's encoder sees inputs")

    def ranks(_, part: Args) -> Tensor:
        simulated, codes = simulate(model, part)
        density = Density(model, guide, simulated)
        return (density.draw(draws) < density.flat(codes)).sum(0)

    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        blocks = list(on_blocks(ranks, model, args, max(1, rows_at_once(model, guide, args) // draws)))
    return Ranks(torch.cat(blocks).cpu(), draws)
