"""Draws from p(z|x), and of x given them, by importance resampling."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from ..programs import Program
from ..training.batches import Args
from .density import point_site
from .particles import Pass, Proposal, on_particles, passes
from .weights import Weights


@dataclass
class Resampled:
    """Draws for a block of examples.

    Args:
        rows: the examples.
        latents: by site, ``(draws, B, *inner plates, *event)``.
        khat: ``(B,)`` of the weights; NaN below 25 particles, infinite for a point guide, which has none.
        pieces: draws of x from p(x|z), one for each z: ``(some, B, *event)``, as many at once as a pass holds, in order.
    """

    rows: slice
    latents: dict[str, Tensor]
    khat: Tensor
    pieces: Iterator[Tensor]

    def x(self) -> Tensor:
        """All pieces, ``(draws, B, *event)``; to be taken once."""
        return torch.cat(list(self.pieces))


def resampled(
    model: Program, guide: Program, args: Args, draws: int, particles: int, proposal: Proposal | None = None, progress: bool = False
) -> Iterator[Resampled]:
    """``draws`` of z resampled from ``particles`` per example, with probability proportional to p(x, z) / q(z|x), and x from p(x|z).

    z is resampled with replacement; x is drawn afterwards, so that draws that share a z are independent given it.
    """
    every = passes(model, guide, args, particles, progress, proposal)
    for _, block in itertools.groupby(every, key=lambda each: each.rows.start):
        first, latents = None, {}
        for each in block:
            log_w = each.log_weights()  # (particles, B)
            if first is None:
                first, weights = each, Weights(log_w.shape[1], particles, log_w.device)
            weights.add(log_w)
            latents = _chosen(each, log_w, draws, latents, (log_w.logsumexp(0) - weights.log_sum).exp())
        khat = weights.khat() if point_site(first.guide) is None else torch.full_like(weights.log_sum, math.inf)
        yield Resampled(first.rows, latents, khat, _drawn(model, args, first, latents, draws))


def _chosen(each: Pass, log_w: Tensor, draws: int, before: dict[str, Tensor], share: Tensor) -> dict[str, Tensor]:
    """Draws from all particles so far; those of this pass have the ``share`` ``(B,)`` of the total weight."""
    p = log_w.softmax(0)
    p = torch.where(p.isfinite(), p, 1.0)  # uniform where all weights are 0
    winner = p.T.multinomial(draws, replacement=True).T  # (draws, B)
    row = torch.arange(log_w.shape[1], device=log_w.device).expand_as(winner)
    values = {name: each.model.nodes[name]["value"].movedim(each.data_dim, 1)[winner, row] for name in each.latents}
    if not before:
        return values
    wins = torch.rand_like(share.expand(draws, -1)) < share
    return {name: torch.where(wins.reshape(*wins.shape, *[1] * (v.dim() - 2)), v, before[name]) for name, v in values.items()}


def _drawn(model: Program, args: Args, block: Pass, latents: dict[str, Tensor], draws: int) -> Iterator[Tensor]:
    part = tuple(column[block.rows] for column in args)
    at_once = max(1, block.particles)  # as many as a pass holds
    for start in range(0, draws, at_once):
        values = {name: value[start : start + at_once].movedim(1, block.data_dim) for name, value in latents.items()}
        k = min(at_once, draws - start)
        trace = poutine.trace(poutine.condition(on_particles(model, k, block.nesting), data=values)).get_trace(*part)
        yield trace.nodes[block.observed[0]]["fn"].sample()
