"""Where the first number that is not finite comes from."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..programs import Program
from . import distributed
from .batches import Args
from .checkpoints import copied

if TYPE_CHECKING:
    from .loop import Training

_LARGE = 30.0  # in size: numbers for which weights of the usual size are too large
_LOOK = 10_000  # rows


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


def first_bad_step(run: "Training", until: int) -> str | None:
    """Which step was the first bad one, and what was bad, by taking the steps since the kept state one by one."""
    run.load(run.kept)
    run.careful = True
    try:
        while run.step <= until and not run.finished():
            run.epoch()
    except Diverged as found:
        return str(found)
    finally:
        run.careful = False
    return None


def careful_step(run: "Training", batch: Args):
    """A step of a run that says what is not finite. The program's own errors go through.

    Raises:
        Diverged: the loss, a gradient or a weight is not finite.
    """
    weights = run.weights()
    before, random = copied(weights), programs.random_state(run.train.device)
    loss, gradients = run.svi.gradients(*batch)
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(before[name])
    programs.set_random_state(random, run.train.device)
    where = f"at step {run.step + 1:,} (epoch {len(run.rows) + 1})"
    if not finite([loss]):
        site = distributed.of_any(first_bad_site(run.svi.model, run.svi.guide, batch))
        cause = site or f"every site is finite, so it is {type(run.elbo).__name__} that makes it so"
        raise Diverged(f"the loss is {loss.item() / len(batch[0])} {where}: {cause}")
    said = f"the loss is {loss.item() / len(batch[0])} {where}, but"
    names = {id(parameter): name for name, parameter in weights.items()}
    for parameter, gradient in zip(run.svi.parameters, gradients):
        if not finite([gradient]):
            raise Diverged(f"{said} the gradient of {names[id(parameter)]!r} is not finite")
    run.count(batch, run.svi.step(*batch))
    if not finite([run.total, *run.svi.parameters]):
        raise Diverged(f"{said} the step made a weight infinite")


@torch.no_grad()
def remedy(model: Any, x: Any, schema: Any = None) -> str:
    """What to do about a loss that is not finite: to standardise the column of x with the largest numbers, where those are large.

    Args:
        model: whose likelihood says how the encoder sees x.
        x: training data ``(N, *event)``, or something else, of which nothing is known.
        schema: the columns' names.
    """
    usual = "try a lower lr or clip=1.0, and look at the penalty's domain"
    if not isinstance(x, Tensor) or x.dim() != 2:
        return usual
    x = x[:_LOOK]
    likelihood = getattr(model, "likelihood", None)
    shown = x if likelihood is None else likelihood.shown(x)
    if shown.shape != x.shape or shown.nan_to_num(0.0).abs().max() <= _LARGE:
        return usual
    worst = int(shown.nan_to_num(0.0).abs().amax(0).argmax())
    names, values = getattr(schema, "names", None), x[:, worst].double()
    values = values[values.isfinite()]
    name = f"column {names[worst]!r}" if names else f"entry {worst} of x"
    return (
        f"{name} goes from {values.min():.4g} to {values.max():.4g} (standard deviation {values.std(correction=0):.3g}), too far for a "
        "network: standardise it, by pa.likelihoods.Standardised(Normal(...)) around its likelihood "
        "(--likelihood Standardised --likelihood.of Normal)"
    )


def _bad(tensor: Tensor) -> str:
    values = tensor[~tensor.isfinite()]
    return f"{values[0].item()} in {len(values):,} of {tensor.numel():,} places"
