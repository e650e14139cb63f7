"""Results for ArviZ, whose plots and comparisons then work on them."""

from typing import Any

import torch

from .. import programs
from ..checks import whole_number
from ..programs import Program
from .importance import Estimate, Source, as_proposal, log_likelihood
from .particles import prepared
from .resampling import resampled


def to_arviz(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    draws: int = 500,
    particles: int = 5000,
    proposal: Source = "auto",
    seed: int | None = 0,
) -> Any:
    """ArviZ's InferenceData (from ArviZ 1.0 on a DataTree), with one chain of draws from p(z|x).

    Groups: ``posterior``, the latents drawn by importance resampling; ``posterior_predictive``, x given them;
    ``observed_data``; and ``log_likelihood``, log p(x) of each example. The last is one number per example, the same for every draw, since
    parameters are points: so ``arviz.compare`` ranks models by held-out log p(x) with paired standard errors, up to ArviZ 0.23.
    That of ArviZ 1 refuses weights that are all equal; ``pa.compare`` gives the same numbers.

    Args:
        model: an Autoencoder, or any Pyro model of a batch with one observed site, x.
        x: held-out data: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        draws: of z and x for each example.
        particles: importance samples of log p(x), from which the draws are resampled.
        proposal: where they come from, as for ``pa.log_likelihood``.
        seed: of the draws.

    Raises:
        ValueError: ArviZ is not installed.

    >>> to_arviz(vae, x, draws=5, particles=30).posterior["z"].shape  # doctest: +SKIP
    (1, 5, 20, 2)
    """
    arviz = _arviz()
    whole_number("to_arviz", draws=draws, particles=particles)
    score = log_likelihood(model, x, guide, particles=particles, proposal=proposal, seed=seed)
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        blocks = [(each.latents, each.x().cpu()) for each in resampled(model, guide, args, draws, particles, as_proposal(proposal))]
    latents = {name: torch.cat([each[name].cpu() for each, _ in blocks], 1).numpy() for name in blocks[0][0]}
    copies = torch.cat([x for _, x in blocks], 1).numpy()
    groups = {
        "posterior": {name: values[None] for name, values in latents.items()},
        "posterior_predictive": {"x": copies[None]},
        "observed_data": {"x": args[0].cpu().numpy()},
        "log_likelihood": {"x": _repeated(score, draws)},
    }
    return arviz.from_dict(**groups) if "InferenceData" in vars(arviz) else arviz.from_dict(groups)


def _repeated(score: Estimate, draws: int):
    return score.values.expand(1, draws, -1).numpy()


def _arviz() -> Any:
    try:
        import arviz
    except ImportError:
        raise ValueError("to_arviz needs ArviZ, which is not installed; use: pip install 'pyroae[arviz]'") from None
    return arviz
