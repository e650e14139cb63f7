"""Any Pyro distribution as a prior, and flows among them."""

import copy

import torch
from pyro import distributions as dist
from pyro.distributions import transforms
from torch import nn

from ...checks import short, whole_number
from ...nested import copied, mapped, modules, tensors
from ...registry import register
from ...threads import alone
from ..conditional import Shape
from ..distributions import AffineAutoregressive
from ..networks import init_near_identity
from .base import Prior


@register("priors")
class FromDistribution(Prior):
    """Any Pyro distribution; one of ``torch.distributions`` becomes the Pyro distribution of the same name.

    Its batch shape, if any, counts as part of the event; the parameters of its transforms are trained.

    >>> FromDistribution(dist.StudentT(3.0, torch.zeros(8), 1.0))().event_shape
    torch.Size([8])
    """

    def __init__(self, distribution: dist.Distribution):
        super().__init__()
        if not isinstance(distribution, torch.distributions.Distribution):
            raise ValueError(f"prior: expected a part such as pa.priors.Normal(8) or a Pyro distribution, got {short(distribution)}")
        self.distribution = self.arguments["distribution"] = distribution = as_pyro(distribution)
        self.event_shape = distribution.batch_shape + distribution.event_shape
        if len(self.event_shape) == 0:
            raise ValueError(
                f"prior: expected a distribution over vectors, got one over single numbers; use .expand([size]) on {distribution}"
            )
        if any(tensor.requires_grad for tensor in tensors(distribution)):
            raise ValueError(
                "prior: a Pyro distribution's own tensors are not trained; use a part such as pa.priors.Normal(8, loc='learned')"
            )
        self.learned = nn.ModuleList(modules(distribution))

    def build(self, context):
        return copied(self)  # its shape is the distribution's

    def __getstate__(self) -> dict:
        """For copying: transforms cache their last values, which are not leaves."""
        clear = getattr(self.distribution, "clear_cache", None)
        if clear:
            clear()
        return self.__dict__

    def forward(self) -> dist.Distribution:
        return self.distribution.to_event(len(self.distribution.batch_shape))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.distribution = mapped(self.distribution, fn)
        return self


def as_pyro(distribution: torch.distributions.Distribution) -> dist.Distribution:
    """The Pyro distribution of the same name and parameters; a Pyro distribution is returned unchanged.

    Raises:
        ValueError: Pyro has no distribution of that name.
    """
    changes = {name: as_pyro(value) for name, value in vars(distribution).items() if isinstance(value, torch.distributions.Distribution)}
    known = type(distribution) if isinstance(distribution, dist.Distribution) else getattr(dist, type(distribution).__name__, None)
    if not (isinstance(known, type) and issubclass(known, type(distribution))):
        raise ValueError(f"prior: Pyro has no {type(distribution).__name__}; make it a subclass of pyro.distributions.TorchDistribution")
    if known is type(distribution) and all(value is vars(distribution)[name] for name, value in changes.items()):
        return distribution
    converted = copy.copy(distribution)
    converted.__class__ = known
    converted.__dict__.update(changes)
    return converted


@register("priors")
class Flow(Prior):
    """A normalizing flow: a Normal pushed through learned transforms, then scaled and shifted.

    Args:
        event_shape: shape of one z, a number of at least 2.
        kind: coupling transforms, ``"spline"`` (Durkan et al. 2019; Dolatabadi et al. 2020) or ``"affine"`` (Dinh et al. 2017), or
            autoregressive ones: ``"maf"`` has a fast density and one pass per entry for draws (Papamakarios et al. 2017), ``"iaf"``
            fast draws and one pass per entry for the density (Kingma et al. 2016).
        layers: how many transforms; the entries are reversed between two of them.
        hidden: width of each transform's hidden layer.

    The scale and shift are 1 and 0; ``pa.fit_prior`` sets them to those of the codes, which may be far from a standard Normal.

    >>> Flow(4)().event_shape
    torch.Size([4])
    """

    @alone
    def __init__(self, event_shape: Shape | None = None, kind: str = "spline", layers: int = 4, hidden: int = 64):
        super().__init__(event_shape)
        if kind not in _MAKERS:
            raise ValueError(f"Flow: expected kind as one of {', '.join(_MAKERS)}, got {kind!r}")
        whole_number("Flow", layers=layers, hidden=hidden)
        shape = self.event_shape
        if shape is None:
            return
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(f"Flow: expected z as a vector of at least 2 numbers, got the shape {tuple(shape)}")
        learned = [_MAKERS[kind](shape[0], hidden_dims=[hidden]) for _ in range(layers)]
        init_near_identity(nn.ModuleList(learned))
        self.steps, self.inverted = nn.ModuleList(learned), kind == "maf"
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("factor", torch.ones(shape))

    def forward(self) -> dist.Distribution:
        flip = transforms.Permute(torch.arange(self.event_shape[0], device=self.shift.device).flip(0), cache_size=1)
        steps = [step for each in self.steps for step in (each.inv if self.inverted else each, flip)]
        base = dist.Normal(torch.zeros_like(self.shift), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [*steps, transforms.AffineTransform(self.shift, self.factor, event_dim=1)])

    def fit_to(self, z):
        """Sets shift and factor to mean and standard deviation of the codes; the transforms are learned by gradient."""
        self.shift.copy_(z.mean(0))
        self.factor.copy_(z.std(0).clamp(min=1e-6))
        return False


_MAKERS = {
    "spline": transforms.spline_coupling,
    "affine": transforms.affine_coupling,
    "maf": AffineAutoregressive,
    "iaf": AffineAutoregressive,
}
