"""Annealed importance sampling, and bidirectional Monte Carlo: bounds on log p(x) from both sides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..checks import whole_number
from ..programs import Program
from ..programs.folding import padded
from ..programs.probing import plate_nesting
from ..training.batches import Args
from .density import Density
from .importance import Estimate, check_weighable, observed_entries
from .particles import Proposal, on_blocks, prepared, rows_at_once
from .verdict import Verdict
from .weights import Weights

_GRAPH = 4  # a gradient takes so many times the memory of a value
_PILOT = 8  # the pilot has so many times fewer temperatures than the run
_AGREE = 2.0  # annealed effective sample size below which a single chain dominates
_TARGET = 0.8  # share of proposals accepted, to which step sizes are adapted


@dataclass(frozen=True, repr=False, eq=False)
class Annealed(Estimate):
    """log p(x) of each example by annealed importance sampling; a particle is a chain."""

    temperatures: int = field(kw_only=True)
    acceptance: Tensor = field(kw_only=True)  # (N,) share of HMC's proposals that were accepted
    bound: str = field(kw_only=True)  # in expectation: "a lower" or "an upper", which has no errors: its chains begin at one draw

    @property
    def verdict(self) -> Verdict:
        """Whether the estimate can be trusted, and how to check it."""
        if (wrong := self._not_finite) is not None:
            return wrong
        alone = (self.ess < _AGREE).double().mean().item() if self.particles > 1 else 1.0
        if alone == 0:
            return Verdict("no sign of trouble", f"at least {_AGREE:g} chains agree on each of {len(self.values):,} examples", "bdmc")
        reason = f"on {alone:.1%} of the examples a single chain has most of the weight, so values are too low and errors too small"
        return Verdict("uncertain", reason, "temperatures", self.errors[self.ess < _AGREE].sum().item() / len(self.values))

    def __str__(self) -> str:
        text = super().__str__().replace("ESS", "annealed ESS", 1)
        return f"{text}; {self.temperatures} temperatures, acceptance {self.acceptance.mean():.2f} (min {self.acceptance.min():.2f})"

    __repr__ = __str__


@dataclass(frozen=True, repr=False, eq=False)
class Bracket:
    """log p(x) of data simulated from the model, from below and from above, nats per example."""

    x: Tensor  # (N, *event) the simulated data
    lower: Annealed
    upper: Annealed

    @property
    def gap(self) -> float:
        """Mean of upper - lower: how far either can be from log p(x), in expectation."""
        return self.upper.mean - self.lower.mean

    @property
    def gap_se(self) -> float:
        """Standard error of the gap over the examples, as backward chains from one exact draw are not independent."""
        return (self.upper.values - self.lower.values).std().item() / len(self.x) ** 0.5

    def __str__(self) -> str:
        text = f"log p(x) from {self.lower.mean:.2f} below, {self.upper.mean:.2f} above, nats/example on simulated data"
        text += f", gap {self.gap:.2g} (s.e. {self.gap_se:.2g})"
        return text + ("; below 0 by Monte-Carlo error: more chains or examples would reduce it" if self.gap < 0 else "")

    __repr__ = __str__


def ais(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    proposal: Proposal | None = None,
    chains: int = 16,
    temperatures: int = 200,
    leapfrog: int = 5,
    seed: int | None = 0,
    progress: bool = False,
) -> Annealed:
    r"""Log-likelihood of each example by annealed importance sampling (Neal 2001; Wu et al. 2017): a lower bound in expectation.

    Chains go from the guide (or a proposal) q to p(z|x) by Hamiltonian Monte Carlo over z, through
    :math:`f_t \propto q^{1 - \beta_t} p(x, z)^{\beta_t}` with a sigmoid schedule, and

    .. math:: \log \hat p(x) = \log \frac1C \sum_c \prod_t \Big(\frac{p(x, z)}{q(z|x)}\Big)^{\beta_t - \beta_{t-1}}.

    All chains of all examples in a block step at once, each with its own step sizes, adapted in a shorter pilot run and then
    fixed, so that the estimate is unbiased for p(x). Latents in a constrained space are mapped to the real line.

    Args:
        model: an Autoencoder, or any Pyro model of a batch, with real-valued latents in one plate over the examples.
        x: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        proposal: where chains start instead of the guide, such as ``pa.proposals.prior``.
        chains: for each example.
        temperatures: between q and the posterior; more make the bound tighter.
        leapfrog: steps of HMC at each temperature.
        seed: of the draws; ``None`` goes on with the caller's random state.
        progress: show a progress bar.

    Raises:
        ValueError: discrete latents or ones on a sphere, a guide without a density and no proposal, an improper prior.

    >>> ais(vae, torch.rand(5, 16).round(), chains=4, temperatures=5).values.shape
    torch.Size([5])
    """
    whole_number("ais", chains=chains, temperatures=temperatures, leapfrog=leapfrog)
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        annealed = lambda _, part: _Annealing(model, guide, part, proposal, chains, temperatures, leapfrog).forward()  # noqa: E731
        runs = list(on_blocks(annealed, model, args, _examples_at_once(model, guide, args, chains), progress))
    return _estimate(runs, "a lower", temperatures, args)


def bdmc(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    proposal: Proposal | None = None,
    chains: int = 16,
    temperatures: int = 200,
    leapfrog: int = 5,
    seed: int | None = 0,
    progress: bool = False,
) -> Bracket:
    """Bidirectional Monte Carlo (Grosse et al. 2015): how far AIS with these settings can be trusted on data of this kind.

    As many examples as in ``x`` are simulated from the model together with their z: exact draws from p(z|x). Chains
    forward from the base give a lower bound on their log p(x), chains backward from z an upper one, both in expectation.

    Args:
        model, guide, proposal, chains, temperatures, leapfrog, seed, progress: as for ``ais``.
        x: data of which only the shape is used, and the y of a tuple ``(x, y)``.

    Raises:
        ValueError: as for ``ais``; a model whose one observed site is not x itself.

    >>> abs(bdmc(vae, torch.zeros(5, 16), chains=10, temperatures=20).gap) < 1
    True
    """
    whole_number("bdmc", chains=chains, temperatures=temperatures, leapfrog=leapfrog)
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)

        def both(_, part: Args) -> tuple[Tensor, tuple, tuple]:
            part, codes = simulate(model, part)
            annealing = _Annealing(model, guide, part, proposal, chains, temperatures, leapfrog)
            return part[0].cpu(), annealing.forward(), annealing.backward(annealing.density.flat(codes))

        made, below, above = zip(*on_blocks(both, model, args, _examples_at_once(model, guide, args, chains), progress))
    return Bracket(torch.cat(made), _estimate(below, "a lower", temperatures, args), _estimate(above, "an upper", temperatures, args))


def simulate(model: Program, args: Args) -> tuple[Args, dict[str, Tensor]]:
    """Examples like ``args`` drawn from the model, and their latents, ``(1, *plates, *event)``.

    Raises:
        ValueError: the model's observed site is not x itself.
    """
    trace = poutine.trace(model).get_trace(*args)
    observed = list(programs.sites(trace, observed=True))
    if len(observed) != 1 or trace.nodes[observed[0]]["value"].shape != args[0].shape:
        raise ValueError(
            f"data can be simulated from a model with one observed site of x's shape {tuple(args[0].shape)}, got the sites "
            f"{', '.join(observed)}"
        )
    nesting = plate_nesting(trace)
    drawn = poutine.trace(poutine.uncondition(model)).get_trace(*args).nodes
    latents = {name: drawn[name] for name in programs.sites(trace, observed=False)}
    values = {name: padded(site["value"], nesting + len(site["fn"].event_shape))[None] for name, site in latents.items()}
    return (drawn[observed[0]]["value"].reshape(args[0].shape), *args[1:]), values


def _examples_at_once(model: Program, guide: Program, args: Args, chains: int) -> int:
    return max(1, rows_at_once(model, guide, args) // (_GRAPH * chains))


def _estimate(runs: Sequence[tuple[Weights, Tensor]], bound: str, temperatures: int, args: Args) -> Annealed:
    weights = [w for w, _ in runs]
    values, errors, ess, khat = torch.cat([w.columns() for w in weights], 1).cpu()
    acceptance = torch.cat([share for _, share in runs]).cpu()
    if bound == "an upper":  # their mean estimates 1 / p(x)
        values, errors = -values, torch.full_like(errors, torch.nan)
    common = values, errors, ess, khat, weights[0].particles, observed_entries(args[0]).mean().item(), "annealing"
    return Annealed(*common, temperatures=temperatures, acceptance=acceptance, bound=bound)


class _Annealing:
    """Chains between base and posterior for one block of data; ``u`` is ``(chains, B, size)``."""

    def __init__(self, model, guide, args: Args, proposal: Proposal | None, chains: int, temperatures: int, leapfrog: int):
        guide = proposal(model, guide, *args) if proposal else guide
        check_weighable("ais", *programs.traces(model, guide, *args))
        self.density, self.chains, self.leapfrog = Density(model, guide, args), chains, leapfrog
        self.mass = self.density.draw(256).std(0)  # (B, size): a unit of length for each entry
        self.beta = _schedule(temperatures).tolist()
        self.steps = self._pilot(max(5, temperatures // _PILOT))

    def forward(self) -> tuple[Weights, Tensor]:
        """Weights from the base to the posterior, and the share of moves accepted."""
        return self._run(self.density.draw(self.chains), list(range(1, len(self.beta))), 0)

    def backward(self, exact: Tensor) -> tuple[Weights, Tensor]:
        """Weights from exact draws of the posterior ``(1, B, size)`` to the base: their mean estimates 1 / p(x)."""
        return self._run(exact.expand(self.chains, *exact.shape[1:]), list(range(len(self.beta) - 2, -1, -1)), len(self.beta) - 1)

    def _run(self, u: Tensor, order: list[int], start: int) -> tuple[Weights, Tensor]:
        log_w = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        accepted, last = torch.zeros_like(log_w), self.beta[start]
        for t in order:
            log_p, log_q, slope = self._slope(u, self.beta[t])
            log_w += (self.beta[t] - last) * (log_p - log_q)
            last = self.beta[t]
            if t != order[-1]:
                u, chance, moved = self._move(u, log_p, log_q, slope, self.beta[t], self._step_at(t))
                accepted += moved
        weights = Weights(u.shape[1], len(u), u.device)
        weights.add(log_w)
        return weights, (accepted / max(1, len(order) - 1)).mean(0)

    def _slope(self, u: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x, u), log q(u), and the gradient of their mixture."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_p, log_q = self.density.log_terms(u)
            (slope,) = torch.autograd.grad((beta * log_p + (1 - beta) * log_q).sum(), u)
        return log_p.detach(), log_q.detach(), slope

    def _move(self, u, log_p, log_q, slope, beta: float, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One HMC move of every chain: the new u, the acceptance probability, and whether it was accepted."""
        size = step[..., None] * self.mass  # (chains, B, size)
        momentum = torch.randn_like(u)
        energy = beta * log_p + (1 - beta) * log_q - 0.5 * momentum.double().square().sum(-1)
        there, v = u, momentum + 0.5 * size * slope
        for i in range(self.leapfrog):
            there = there + size * v
            log_p, log_q, slope = self._slope(there, beta)
            v = v + (0.5 if i == self.leapfrog - 1 else 1.0) * size * slope
        chance = (beta * log_p + (1 - beta) * log_q - 0.5 * v.double().square().sum(-1) - energy).exp().clamp(max=1).nan_to_num(nan=0.0)
        moved = torch.rand_like(chance) < chance
        return torch.where(moved[..., None], there, u), chance, moved

    def _pilot(self, temperatures: int) -> Tensor:
        """Step sizes ``(temperatures, chains, B)``, adapted by each chain in a shorter run."""
        u = self.density.draw(self.chains)
        log_step = torch.full(u.shape[:2], 0.5, device=u.device, dtype=u.dtype).log()
        kept = []
        for t, beta in enumerate(_schedule(temperatures).tolist()):
            for _ in range(20 if t == 0 else 2):
                log_p, log_q, slope = self._slope(u, beta)
                u, chance, _ = self._move(u, log_p, log_q, slope, beta, log_step.exp())
                log_step = (log_step + 0.3 * (chance - _TARGET).to(u.dtype)).clamp(max=0.7)
            kept.append(log_step.exp())
        return torch.stack(kept)

    def _step_at(self, t: int) -> Tensor:
        return self.steps[round(t / (len(self.beta) - 1) * (len(self.steps) - 1))]


def _schedule(temperatures: int) -> Tensor:
    """beta from 0 to 1, ``(temperatures + 1,)``, slow at both ends (Wu et al. 2017, section 2.3)."""
    s = torch.sigmoid(4 * torch.linspace(-1, 1, temperatures + 1, dtype=torch.float64))
    return (s - s[0]) / (s[-1] - s[0])
