"""``fit_prior``: p(z) fitted to the codes of a trained autoencoder."""

import math
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import constraints

from . import programs
from .model import conditions
from .model.autoencoder import Autoencoder
from .model.conditions import Condition
from .model.posteriors import Delta, Hierarchical, Posterior
from .model.priors import Constrained, Prior
from .model.priors.plain import SUPPORTS
from .programs.terms import is_point
from .training.batches import Batches
from .training.fit import fit
from .training.options import Validation

_ROWS = 1024  # encoded at once
_DRAWS = 20_000  # of q(z|x), at most, that a prior starts from; at least one for each example
_STEPS = 2000  # of the optimizer by default, where the maximum has no closed form
_RATE = 3e-3


def fit_prior(ae: Autoencoder, data: Any, prior: Prior, *, epochs: int | None = None, seed: int | None = 0, **training) -> Autoencoder:
    r"""The same autoencoder with a prior fitted to its codes by maximum likelihood; p(x|z) and q(z|x) do not change.

    .. math:: \max_p \; \frac1N \sum_n E_{q(z|x_n)} \log p(z) \quad = \quad \min_p \; \frac1N \sum_n KL(q(z|x_n) \| p(z)) + const.

    The codes of a ``Delta`` posterior are points; of any other one they are draws of q(z|x), drawn anew in every step. So plain,
    sparse, denoising and contractive autoencoders become generative models: they can be sampled from, and have a log p(x) (Ghosh et al.
    2020, section 4). ``pa.priors.Normal`` and ``FullNormal`` get their closed-form maximum, ``GaussianMixture`` that of EM, all others
    Adam's. With the prior ``Hierarchical`` this is the two-stage VAE (Dai & Wipf 2019, section 4): a second VAE of the codes.

    Where z is constrained, such as the sigmoid units of ``Flat(size, support="unit_interval")``, a prior on the real line becomes
    ``pa.priors.Constrained(prior, support)``.

    Args:
        ae: a trained model. It is not changed.
        data: its training data, as for ``fit``; what a split of ``pa.data.load`` draws anew (binarization) is drawn once.
        prior: with parameters to fit, such as ``pa.priors.GaussianMixture(components=10)``; its shape may be left out.
        epochs: passes over the codes; by default as many as 2,000 steps take, at least 20. Unused where the maximum is in closed form.
        seed: of draws, initial values and the order of the codes.
        training: further options of ``fit``, such as ``batch_size``, ``lr`` (by default 3e-3, falling to 0) and ``validation``.

    Raises:
        ValueError: a prior without parameters, or one that does not match the posterior.

    >>> ae = pa.recipes.autoencoder(x, latent_dim=2, hidden=8)
    >>> fit_prior(ae, x, pa.priors.GaussianMixture(components=3)).sample(4).shape
    torch.Size([4, 16])
    """
    if "run" in training:
        raise ValueError("fit_prior: expected no run: it writes no checkpoints")
    with programs.seeded(seed, ae.device):
        new = ae.replace(**_parts(ae, prior)).to(_like(ae).dtype).eval()
        trained = _trained(ae, new)
        if not trained:
            raise ValueError(
                f"fit_prior: expected a prior with parameters to fit, and {type(prior).__name__} has none; "
                "such as pa.priors.Normal(loc='per_dimension', scale='per_dimension') or pa.priors.GaussianMixture()"
            )
        codes = _Codes(new, data)
        new.prior.measure(codes.x)
        if not new.prior.fit_to(codes.draws(_DRAWS)):
            _by_gradient(new, trained, codes, epochs, training)
    return new.eval()


def _parts(ae: Autoencoder, prior: Prior) -> dict[str, Any]:
    """The parts of the new model: the prior, on the support of the codes, and a posterior that draws its upper level too."""
    if not isinstance(prior, Prior):
        raise ValueError(f"fit_prior: expected a prior such as pa.priors.GaussianMixture(components=10), got {prior!r}")
    shape = ae.prior.event_shape
    if prior.event_shape not in (None, shape):
        raise ValueError(f"fit_prior: expected a prior over codes of shape {tuple(shape)}, got {tuple(prior.event_shape)}; leave it out")
    if isinstance(ae.posterior, Delta) and ae.prior.support is not constraints.real and not isinstance(prior, Constrained):
        prior = _constrained(prior, ae.prior.support)
    if len(prior.sites) == 1:
        return {"prior": prior}
    if prior.sites != Hierarchical.sites or prior.decoder_sees_top:
        raise ValueError(
            f"fit_prior: expected a prior of one level, or pa.priors.Hierarchical without skip, got {type(prior).__name__}; "
            "a mixture without its categories is pa.priors.GaussianMixture"
        )
    return {"prior": prior, "posterior": Hierarchical(base=ae.posterior)}


def _constrained(prior: Prior, support: constraints.Constraint) -> Prior:
    """The prior mapped to the support of the codes."""
    names = [name for name, constraint in SUPPORTS.items() if constraint is support]
    return Constrained(prior, names[0]) if names else prior


def _trained(ae: Autoencoder, new: Autoencoder) -> list[nn.Parameter]:
    """Parameters of the prior, and of the posterior's upper level if it is new."""
    fixed = set(new.posterior.base.parameters()) if len(new.prior.sites) > len(ae.prior.sites) else set(new.posterior.parameters())
    return [*new.prior.parameters(), *(p for p in new.posterior.parameters() if p not in fixed)]


def _like(ae: Autoencoder) -> Tensor:
    """A tensor of the model's dtype."""
    return next((p for p in ae.parameters() if p.is_floating_point()), torch.zeros(()))


class _Codes:
    """The encoder's outputs for data: what q(z|x) depends on, encoded once.

    Args:
        ae: the model.
        data: as for ``fit``.
    """

    def __init__(self, ae: Autoencoder, data: Any):
        self.ae, self.source = ae, data
        batches = Batches(data, _ROWS, ae.device, shuffle=False, model=ae.model)
        with torch.no_grad():
            rows = [self._encoded(*(column[:] for column in batch)) for batch in batches]
        self.x, self.h, *self.y = (torch.cat(column) for column in zip(*rows))

    def _encoded(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """x, the encoder's output, and y if there is one."""
        guide, dtype = self.ae.guide, _like(self.ae).dtype
        x, encoded = arguments[0].to(dtype), arguments[guide.encoded].to(dtype)
        y = arguments[1 : len(arguments) - guide.takes_inputs]
        return x, guide.params(encoded, self.ae._context(*y, len(x)) if y else None), *y

    @property
    def arguments(self) -> Tensor | tuple[Tensor, ...]:
        """The data of the programs ``_PriorModel`` and ``_CodeGuide``."""
        return (self.h, *self.y) if self.y else self.h

    @torch.no_grad()
    def draws(self, most: int) -> Tensor:
        """z for all examples, ``(n, *event)``: several draws of q(z|x) each if the examples are few, and q(z|x) is no point."""
        posterior = getattr(self.ae.posterior, "base", self.ae.posterior)
        q = posterior(self.h)
        several = 1 if is_point({"fn": q}) else max(1, most // len(self.h))
        return q.sample((several,)).flatten(0, 1)


class _OnCodes(nn.Module):
    """A program of codes given the encoder's outputs h, and the condition's y."""

    def __init__(self, condition: Condition | None):
        super().__init__()
        self.condition = condition

    @property
    def takes_labels(self) -> bool:
        """Whether it is called with y too."""
        return self.condition is not None

    def draw(self, h: Tensor, c: Tensor | None):
        """The Pyro statements of one example, inside the plate; c are the condition's vectors."""
        raise NotImplementedError

    def forward(self, h: Tensor, y: Tensor | None = None):
        """Draw z for every example."""
        c = conditions.encode(self.condition, y, len(h))
        with pyro.plate("data", len(h)):
            self.draw(h, c)


class _PriorModel(_OnCodes):
    def __init__(self, prior: Prior, condition: Condition | None):
        super().__init__(condition)
        self.prior = prior

    def draw(self, h: Tensor, c: Tensor | None):
        self.prior.draw(c)


class _CodeGuide(_OnCodes):
    def __init__(self, posterior: Posterior, condition: Condition | None):
        super().__init__(condition)
        self.posterior = posterior

    def train(self, mode: bool = True):
        """The posterior stays in evaluation mode: a codebook does not change."""
        super().train(mode)
        self.posterior.eval()
        return self

    def draw(self, h: Tensor, c: Tensor | None):
        self.posterior.draw(h, c)


def _by_gradient(ae: Autoencoder, trained: list[nn.Parameter], codes: _Codes, epochs: int | None, training: dict[str, Any]):
    """Minimise KL(q(z|x) || p(z)) over the trained parameters."""
    validation = Validation.of(training.pop("validation", None))
    if validation.data is not None:
        validation = Validation(_Codes(ae, validation.data).arguments, validation.patience)
    if epochs is None:
        epochs = max(20, math.ceil(_STEPS / math.ceil(len(codes.h) / training.get("batch_size", 128))))
    defaults: dict[str, Any] = {
        "lr": _RATE,
        "progress": False,
        "scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs),
    }
    if len(ae.prior.sites) > 1:
        defaults["elbo"] = Trace_ELBO()
    takes_gradient = {p: p.requires_grad for p in ae.parameters()}
    keep = set(trained)
    try:
        for p in takes_gradient:
            p.requires_grad_(p in keep)
        model, guide = _PriorModel(ae.prior, ae.condition), _CodeGuide(ae.posterior, ae.condition)
        fit(model, codes.arguments, guide=guide, epochs=epochs, validation=validation, **defaults | training)
    finally:
        for p, takes in takes_gradient.items():
            p.requires_grad_(takes)
