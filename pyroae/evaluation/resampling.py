"""Draws from p(z|x), and of x given them, by importance resampling."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from ..programs import Program
from ..training.batches import Args
from .particles import Pass, Proposal, on_particles, passes

_Best = tuple[Tensor, dict[str, Tensor]]


@dataclass
class Resampled:
    """Draws for a block of examples."""

    rows: slice
    latents: dict[str, Tensor]  # site name -> (draws, B, *inner plates, *event)
    x: Tensor  # (draws, B, *event), one draw from p(x|z) for each z


def resampled(
    model: Program, guide: Program, args: Args, draws: int, particles: int, proposal: Proposal | None = None
) -> Iterator[Resampled]:
    """``draws`` of ``particles`` codes for each example, with probability proportional to p(x, z) / q(z|x), and x drawn from p(x|z).

    Codes are chosen with replacement; x is drawn after the choice, so that draws that share a code are still independent given it.
    """
    for _, block in itertools.groupby(passes(model, guide, args, particles, proposal=proposal), key=lambda each: each.rows.start):
        best, first = None, None
        for each in block:
            best, first = _winners(each, draws, best), first or each
        yield _drawn(model, args, first, best[1], draws)


def _winners(each: Pass, draws: int, before: _Best | None) -> _Best:
    """The chosen codes so far and their keys ``(draws, B)``.

    A particle's key is its log-weight plus Gumbel noise: the largest over all passes is a draw in proportion to the weights.
    """
    log_w = each.log_weights()  # (particles, B)
    gumbel = -torch.empty(draws, *log_w.shape, dtype=log_w.dtype, device=log_w.device).exponential_().log()
    keys, winner = (log_w + gumbel).max(1)  # (draws, B)
    row = torch.arange(log_w.shape[1], device=log_w.device).expand_as(winner)
    values = {name: each.model.nodes[name]["value"].movedim(each.data_dim, 1)[winner, row] for name in each.latents}
    if before is None:
        return keys, values
    wins = keys > before[0]
    kept = {name: torch.where(wins.reshape(*wins.shape, *[1] * (v.dim() - 2)), v, before[1][name]) for name, v in values.items()}
    return torch.maximum(keys, before[0]), kept


def _drawn(model: Program, args: Args, block: Pass, latents: dict[str, Tensor], draws: int) -> Resampled:
    part = tuple(column[block.rows] for column in args)
    at_once = max(1, block.particles)  # a pass fits into memory
    pieces = []
    for start in range(0, draws, at_once):
        values = {name: value[start : start + at_once].movedim(1, block.data_dim) for name, value in latents.items()}
        k = min(at_once, draws - start)
        trace = poutine.trace(poutine.condition(on_particles(model, k, block.nesting), data=values)).get_trace(*part)
        pieces.append(trace.nodes[block.observed[0]]["fn"].sample())
    return Resampled(block.rows, latents, torch.cat(pieces))
