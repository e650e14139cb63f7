"""Where the first number that is not finite comes from."""

from collections.abc import Iterable

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..programs import Program


class Diverged(Exception):
    """A loss or a weight is not finite any more."""


def finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all numbers are; waits for the device."""
    looks = [tensor.isfinite().all() for tensor in tensors if tensor is not None]
    return not looks or bool(torch.stack(looks).all())


@torch.no_grad()
def first_bad_site(model: Program, guide: Program, args: tuple) -> str | None:
    """The first site, of the guide's and then of the model's, with a draw or a log-density that is not finite, in words."""
    with poutine.block():
        seen, guessed = programs.traces(model, guide, *args)
    drawn = {("guide", name): site for name, site in programs.sites(guessed, observed=False).items()}
    scored = {("model", name): site for observed in (False, True) for name, site in programs.sites(seen, observed).items()}
    for (owner, name), site in (drawn | scored).items():
        if not finite([site["value"]]):
            return f"the {owner}'s site {name!r} is {_bad(site['value'])}"
        density = site["fn"].log_prob(site["value"])
        if not finite([density]):
            return f"the {owner}'s log-density of the site {name!r} is {_bad(density)}"
    return None


def _bad(tensor: Tensor) -> str:
    values = tensor[~tensor.isfinite()]
    return f"{values[0].item()} in {len(values):,} of {tensor.numel():,} places"
