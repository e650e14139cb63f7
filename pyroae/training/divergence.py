"""Find the first value that is not finite, and suggest a remedy."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..data.inputs import likelihood_of
from ..programs import Program
from . import distributed
from .batches import Args
from .checkpoints import copy_tensors

if TYPE_CHECKING:
    from .loop import Training

_LARGE = 30.0  # absolute value of inputs that is too large for weights at initialization
_ROWS = 10_000  # examples to inspect


class Diverged(Exception):
    """A loss or a weight became infinite or NaN."""


def finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all entries are finite; synchronizes with the device."""
    checks = [tensor.isfinite().all() for tensor in tensors if tensor is not None]
    return not checks or bool(torch.stack(checks).all())


@torch.no_grad()
def first_bad_site(model: Program, guide: Program, args: tuple) -> str | None:
    """Describe the first site, in the guide and then in the model, with a value or a log-density that is not finite."""
    with poutine.block():
        model_trace, guide_trace = programs.traces(model, guide, *args)
    drawn = {("guide", name): site for name, site in programs.sites(guide_trace, observed=False).items()}
    scored = {("model", name): site for observed in (False, True) for name, site in programs.sites(model_trace, observed).items()}
    for (owner, name), site in (drawn | scored).items():
        if not finite([site["value"]]):
            return f"the {owner}'s site {name!r} is {_describe(site['value'])}"
        density = site["fn"].log_prob(site["value"])
        if not finite([density]):
            return f"the {owner}'s log-density of the site {name!r} is {_describe(density)}"
    return None


def first_bad_step(training: "Training", until: int) -> str | None:
    """Describe the first bad step by repeating all steps since the last copy of the state; ``None`` if all of them are finite."""
    training.load(training.saver.last)
    try:
        while training.step <= until and not training.finished():
            for batch in training.train:
                _checked_step(training, batch)
            training.end_epoch(repeated=True)
    except Diverged as error:
        return str(error)
    return None


def _checked_step(training: "Training", batch: Args):
    """Take a step and check all of its results. Errors of the program are not caught.

    Raises:
        Diverged: the loss, a gradient or a weight is not finite.
    """
    weights = training.weights()
    before, random = copy_tensors(weights), programs.random_state(training.train.device)
    loss, gradients = training.svi.gradients(*batch)
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(before[name])
    programs.set_random_state(random, training.train.device)
    where = f"at step {training.step + 1:,} (epoch {len(training.rows) + 1})"
    per_example = loss.item() / (len(batch[0]) * distributed.world_size())
    if not finite([loss]):
        site = distributed.first_result(first_bad_site(training.svi.model, training.svi.guide, batch))
        cause = site or f"every site is finite, so the objective {type(training.elbo).__name__} is the cause"
        raise Diverged(f"the loss is {per_example} {where}: {cause}")
    names = {id(parameter): name for name, parameter in weights.items()}
    for parameter, gradient in zip(training.svi.parameters, gradients):
        if not finite([gradient]):
            raise Diverged(f"the loss is {per_example} {where}, but the gradient of {names[id(parameter)]!r} is not finite")
    training.count(training.svi.step(*batch))
    if not finite([training.total, *training.svi.parameters]):
        raise Diverged(f"the loss is {per_example} {where}, but the step made a weight infinite")


@torch.no_grad()
def remedy(model: Any, x: Any, schema: Any = None) -> str:
    """What to do about a loss that is not finite: standardise the column of x with the largest values, if they are large.

    Args:
        model: its likelihood preprocesses x for the encoder.
        x: training data ``(N, *event)``; anything but a matrix is ignored.
        schema: the columns' names.
    """
    default = "try a lower lr or gradient clipping (compile=pa.Step(clip=1.0), --clip 1), and check the penalty's domain"
    if not isinstance(x, Tensor) or x.dim() != 2:
        return default
    x = x[:_ROWS]
    likelihood = likelihood_of(model)
    inputs = x if likelihood is None else likelihood.preprocess(x)
    if inputs.shape != x.shape or inputs.nan_to_num(0.0).abs().max() <= _LARGE:
        return default
    worst = int(inputs.nan_to_num(0.0).abs().amax(0).argmax())
    names, values = getattr(schema, "names", None), x[:, worst].double()
    values = values[values.isfinite()]
    name = f"column {names[worst]!r}" if names else f"entry {worst} of x"
    return (
        f"{name} ranges from {values.min():.4g} to {values.max():.4g} (standard deviation {values.std(correction=0):.3g}), too wide for a "
        "network: standardise it, by pa.likelihoods.Standardised(Normal(...)) around its likelihood "
        "(--likelihood Standardised --likelihood.of Normal)"
    )


def _describe(tensor: Tensor) -> str:
    values = tensor[~tensor.isfinite()]
    return f"{values[0].item()} in {len(values):,} of {tensor.numel():,} entries"
