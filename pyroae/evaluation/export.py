"""Results for ArviZ, whose plots and comparisons then work on them."""

from typing import Any

import torch

from .. import programs
from ..checks import whole_number
from ..programs import Program
from .importance import Estimate, check_weighable, log_likelihood
from .particles import Proposal, as_data, passes


def to_arviz(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    draws: int = 500,
    particles: int = 5000,
    proposal: Proposal | None = None,
    seed: int | None = 0,
) -> Any:
    """ArviZ's InferenceData (from ArviZ 1.0 on a DataTree), with one chain of draws from p(z|x).

    Groups: ``posterior``, the latents drawn by importance resampling; ``posterior_predictive``, x given them;
    ``observed_data``; and ``log_likelihood``, log p(x) of each datum. The last is one number a datum, the same for every draw, since
    parameters are points: so ``arviz.compare`` ranks models by held-out log p(x) with paired standard errors.

    Args:
        model: an Autoencoder, or any Pyro model of a batch with one observed site, x.
        x: held-out data: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        draws: of z and x for each datum.
        particles: of log p(x), and to draw from.
        proposal: where they come from instead of the guide.
        seed: of the draws.

    Raises:
        ValueError: ArviZ is not installed.

    >>> import pyroae as pa
    >>> vae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(16), pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    >>> x = torch.rand(20, 16).round()
    >>> to_arviz(vae, x, draws=5, particles=30).posterior["z"].shape  # doctest: +SKIP
    (1, 5, 20, 2)
    """
    arviz = _arviz()
    whole_number("to_arviz", draws=draws, particles=particles)
    score = log_likelihood(model, x, guide, particles=particles, proposal=proposal, seed=seed)
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        args = as_data(x, model, guide)
        latents, copies = _resampled(model, guide, args, draws, particles, proposal)
    groups = {
        "posterior": {name: values[None] for name, values in latents.items()},
        "posterior_predictive": {"x": copies[None]},
        "observed_data": {"x": args[0].cpu().numpy()},
        "log_likelihood": {"x": _repeated(score, draws)},
    }
    return arviz.from_dict(**groups) if hasattr(arviz, "InferenceData") else arviz.from_dict(groups)


def _repeated(score: Estimate, draws: int):
    return score.values.expand(1, draws, -1).numpy()


def _resampled(model, guide, args, draws: int, particles: int, proposal: Proposal | None):
    """Latents and x ``(draws, N, *event)``: of all particles one for each draw, in proportion to the weights, by Gumbel noise."""
    found: dict[int, tuple] = {}
    for each in passes(model, guide, args, particles, proposal=proposal):
        check_weighable("to_arviz", each.model, each.guide)
        log_w = each.log_weights()
        keys = log_w - torch.empty(draws, *log_w.shape, dtype=log_w.dtype, device=log_w.device).exponential_().log()
        best, winner = keys.max(1)  # (draws, data)
        data = torch.arange(log_w.shape[1], device=log_w.device).expand_as(winner)
        take = lambda value: value.movedim(each.nesting, 1)[winner, data].cpu()  # noqa: B023, E731
        values = {name: take(each.model.nodes[name]["value"]) for name in each.latents}
        values["_x"] = take(each.model.nodes[each.observed[0]]["fn"].sample())
        start = each.rows.start
        if start in found:
            old, kept = found[start]
            wins = best.cpu() > old
            values = {name: torch.where(wins.reshape(*wins.shape, *[1] * (v.dim() - 2)), v, kept[name]) for name, v in values.items()}
            best = torch.maximum(best.cpu(), old)
        found[start] = best.cpu(), values
    columns = {name: torch.cat([values[name] for _, values in found.values()], 1).numpy() for name in next(iter(found.values()))[1]}
    return columns, columns.pop("_x")


def _arviz() -> Any:
    try:
        import arviz
    except ImportError:
        raise ValueError("to_arviz needs ArviZ, which is not installed; use: pip install 'pyroae[arviz]'") from None
    return arviz
