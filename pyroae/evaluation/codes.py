"""Posterior means of the latents, and reconstructions from them."""

import contextlib
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..programs import Program
from ..programs.terms import layers
from ..training.batches import Args
from .particles import encoded, on_blocks, on_particles

_BLOCK = 1024
_DRAWS = 64  # where a mean has no closed form


def code_means(model: Program, guide: Program, args: Args) -> Tensor:
    """E[z|x], ``(N, dimensions)``, latent sites concatenated: in closed form for one site where Pyro has it, else the mean of 64 draws."""

    def codes(_, part: Args) -> Tensor:
        return _rows(_means(model, guide, part), part)

    return torch.cat(list(on_blocks(codes, model, args, _BLOCK))).double()


def reconstructed(model: Program, guide: Program, args: Args) -> Tensor:
    """The mean of p(x|z) at z = E[z|x], ``(N, *event)``.

    Raises:
        ValueError: the likelihood has no mean, such as categories.
    """

    def decoded(_, part: Args) -> Tensor:
        return _decoded(model, part, _means(model, guide, part))

    rows = list(on_blocks(decoded, model, args, _BLOCK))
    if not all(bool(mean.isfinite().all()) for mean in rows):
        raise ValueError("p(x|z) has no finite mean, so there is no squared error of it")
    return torch.cat(rows)


def codes_and_means(model: Program, guide: Program, args: Args) -> tuple[Tensor, Tensor]:
    """``code_means`` of one block, and the mean of p(x|z) there, ``(N, *event)``; the encoder runs once."""
    means = _means(model, guide, args)
    return _rows(means, args), _decoded(model, args, means)


def _rows(means: dict[str, tuple[Tensor, int]], args: Args) -> Tensor:
    return torch.cat([mean.movedim(where, 0).reshape(len(args[0]), -1) for mean, where in means.values()], 1)


def _decoded(model: Program, args: Args, means: dict[str, tuple[Tensor, int]]) -> Tensor:
    codes = {name: mean for name, (mean, _) in means.items()}
    observed = programs.sites(poutine.trace(poutine.condition(model, data=codes)).get_trace(*args), observed=True)
    return next(site["fn"].mean for name, site in observed.items() if name not in codes)


def _means(model: Program, guide: Program, args: Args) -> dict[str, tuple[Tensor, int]]:
    """Each latent site's mean ``(*plates, *event)``, and the dimension of the examples in it."""
    encoding = encoded(model, guide, args)
    drawer, nesting = encoding.guide, encoding.nesting
    sites = programs.sites(poutine.trace(drawer).get_trace(*args), observed=False)
    where = {name: site["value"].dim() - len(site["fn"].event_shape) + encoding.plate.dim for name, site in sites.items()}
    name, site = next(iter(sites.items()))
    if len(sites) == 1 and _has_mean(site["fn"]):
        with contextlib.suppress(NotImplementedError, AttributeError):
            if site["fn"].mean.isfinite().all():
                return {name: (site["fn"].mean, where[name])}
    trace = poutine.trace(on_particles(drawer, _DRAWS, nesting)).get_trace(*args)
    shapes = {name: sites[name]["value"].shape for name in sites}
    return {name: (trace.nodes[name]["value"].mean(0).reshape(shapes[name]), where[name]) for name in sites}


def _has_mean(fn: Any) -> bool:
    """Whether a distribution's ``mean`` is its mean; some of pyroae's give a typical point instead."""
    return all(getattr(each, "mean_is_exact", True) for each in layers(fn))
