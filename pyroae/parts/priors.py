"""Priors p(z): conditionals that need no network."""

import copy

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions import transforms
from torch import nn
from torch.distributions import Transform, constraints, transform_to

from ..checks import whole_number
from ..part import Part
from .conditional import Conditional, Shape, as_shape, of_one_entry
from .distributions import UniformSphere
from .networks import MLP, apply


class Prior(Part, nn.Module):
    """A distribution over one z: ``prior()`` has batch shape ``()`` and event shape ``prior.event_shape``."""

    event_shape: torch.Size | None
    proper = True  # whether it integrates to 1, so that there is something to draw and p(x) exists
    sites = ("z",)  # what it draws; the posterior must draw the same
    sized = Conditional.sized

    def draw(self) -> torch.Tensor:
        """The Pyro statements that draw z inside the plate over the data; returns what the decoder sees."""
        return pyro.sample("z", self())

    def sample(self, n: int) -> torch.Tensor:
        """``n`` draws of z, ``(n, *event_shape)``."""
        return self().sample(torch.Size([n]))

    def accepts(self, z: torch.Tensor) -> bool:
        """Whether all of ``z`` ``(n, *event_shape)`` is where this prior has mass."""
        return bool(self().support.check(z).all())

    def start_from(self, x: torch.Tensor):
        """Called before training, for a prior that takes its first values from the data."""

    def meet(self, guide: nn.Module, likelihood: Conditional):
        """Called by the Autoencoder once its guide is there, for a prior that is made of the posterior."""

    @property
    def support(self) -> constraints.Constraint:
        """The constraint on a single entry of z."""
        return of_one_entry(self().support)


class Normal(Conditional, Prior):
    """Independent Normals, N(loc, scale^2) in each dimension; fixed, or with ``"learned"`` ones.

    >>> Normal(8)().event_shape
    torch.Size([8])
    """

    def __init__(self, event_shape: Shape | None = None, loc: float | str = 0.0, scale: float | str = 1.0):
        super().__init__(dist.Normal, event_shape, loc=loc, scale=scale)


class Laplace(Conditional, Prior):
    r"""Independent Laplaces, for sparse codes: with a Delta posterior an L1 penalty of weight 1 / scale.

    :math:`-\log p(z) = \sum_j |z_j - loc| / scale + \log(2\,scale)`.
    """

    def __init__(self, event_shape: Shape | None = None, loc: float | str = 0.0, scale: float | str = 1.0):
        super().__init__(dist.Laplace, event_shape, loc=loc, scale=scale)


class SoftLaplace(Conditional, Prior):
    """Independent soft Laplaces: a smooth peak with Laplace's tails."""

    def __init__(self, event_shape: Shape | None = None, loc: float | str = 0.0, scale: float | str = 1.0):
        super().__init__(dist.SoftLaplace, event_shape, loc=loc, scale=scale)


class StudentT(Conditional, Prior):
    """Independent Student's t: tails that a code far out can afford."""

    def __init__(self, event_shape: Shape | None = None, df: float | str = 5.0, loc: float | str = 0.0, scale: float | str = 1.0):
        super().__init__(dist.StudentT, event_shape, df=df, loc=loc, scale=scale)


class Logistic(Conditional, Prior):
    """Independent Logistics."""

    def __init__(self, event_shape: Shape | None = None, loc: float | str = 0.0, scale: float | str = 1.0):
        super().__init__(dist.Logistic, event_shape, loc=loc, scale=scale)


class Uniform(Conditional, Prior):
    """Independent Uniforms from low to high, for codes with borders; a Delta posterior is squashed into them."""

    def __init__(self, event_shape: Shape | None = None, low: float = -1.0, high: float = 1.0):
        limits = {"low": constraints.dependent, "high": constraints.dependent}
        super().__init__(dist.Uniform, event_shape, limits=limits, low=low, high=high)
        if not low < high:
            raise ValueError(f"Uniform: expected low < high, got low={low!r} and high={high!r}")


class SpikeSlab(Prior):
    """Each number of z is, with probability ``share``, of the wide slab, otherwise of the narrow spike at 0: sparse codes.

    Both are Normals around 0 (George & McCulloch 1993).
    """

    def __init__(self, event_shape: Shape | None = None, share: float = 0.2, slab: float = 1.0, spike: float = 0.05):
        nn.Module.__init__(self)
        if not (0.0 < share < 1.0 and 0.0 < spike < slab):
            raise ValueError(f"SpikeSlab: expected share between 0 and 1 and 0 < spike < slab, got {share!r}, {spike!r} and {slab!r}")
        self.event_shape = None if event_shape is None else as_shape(event_shape, "SpikeSlab")
        self.register_buffer("weights", torch.tensor([share, 1 - share]))
        self.register_buffer("scales", torch.tensor([slab, spike]))

    def forward(self) -> dist.Distribution:
        normals = dist.Normal(torch.zeros_like(self.scales), self.scales).expand([*self.event_shape, 2])
        mixed = dist.MixtureSameFamily(dist.Categorical(self.weights.expand([*self.event_shape, 2])), normals)
        return mixed.to_event(len(self.event_shape))


class Sphere(Prior):
    """Uniform on the unit sphere, for the posterior ProjectedNormal (Davidson et al. 2018)."""

    def __init__(self, event_shape: Shape | None = None):
        nn.Module.__init__(self)
        self.event_shape = None if event_shape is None else as_shape(event_shape, "Sphere")
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> dist.Distribution:
        return UniformSphere(self.like.expand(self.event_shape))


class OneHot(Conditional, Prior):
    """One of as many categories as z has numbers, as a one-hot vector; the logits may be learned."""

    def __init__(self, event_shape: Shape | None = None, logits: float | str = 0.0):
        super().__init__(dist.OneHotCategorical, event_shape, logits=logits)


class Bernoulli(Conditional, Prior):
    """Independent bits; the logits may be learned."""

    def __init__(self, event_shape: Shape | None = None, logits: float | str = 0.0):
        super().__init__(dist.Bernoulli, event_shape, logits=logits)


class GaussianMixture(Prior):
    """A mixture of diagonal Normals whose weights, means and scales are learned.

    Args:
        event_shape: shape of one z, a number.
        components: how many Normals.
        spread: standard deviation of the means at the start.
    """

    def __init__(self, event_shape: Shape | None = None, components: int = 10, spread: float = 1.0):
        nn.Module.__init__(self)
        whole_number("GaussianMixture", components=components)
        self.event_shape = None if event_shape is None else as_shape(event_shape, "GaussianMixture")
        if self.event_shape is not None:
            self.logits = nn.Parameter(torch.zeros(components))
            self.loc = nn.Parameter(spread * torch.randn(components, *self.event_shape))
            self.raw_scale = nn.Parameter(torch.zeros(components, *self.event_shape))

    def forward(self) -> dist.Distribution:
        normals = dist.Normal(self.loc, self.raw_scale.exp()).to_event(len(self.event_shape))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)


class VampPrior(Prior):
    r"""A mixture of the posteriors of learned pseudo-inputs: :math:`p(z) = \frac1K \sum_k q(z|u_k)` (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs are encoded once a step, not once a datum. They start at random; ``start_from`` puts them on data.

    Args:
        event_shape: shape of one z.
        components: K.
    """

    support = constraints.real

    def __init__(self, event_shape: Shape | None = None, components: int = 100):
        nn.Module.__init__(self)
        whole_number("VampPrior", components=components)
        self.event_shape = None if event_shape is None else as_shape(event_shape, "VampPrior")
        self.components = components

    def accepts(self, z):
        """Everything: its posteriors cover what they cover."""
        return True

    def meet(self, guide, likelihood):
        self._guide = (guide,)  # no submodule: its parameters are the guide's
        bounded = likelihood.bounded
        self._squash = constraints.unit_interval if bounded else constraints.real
        shape = (self.components, *likelihood.event_shape)
        if not hasattr(self, "raw") or self.raw.shape != shape:
            self.raw = nn.Parameter(torch.randn(shape) - (2.0 if bounded else 0.0))

    @torch.no_grad()
    def start_from(self, x: torch.Tensor):
        """Put the pseudo-inputs on ``components`` of the data, drawn at random."""
        rows = x[torch.randint(len(x), (self.components,), device=x.device)].to(self.raw)
        self.raw.copy_(transform_to(self._squash).inv(rows * 0.98 + 0.01) if self._squash is constraints.unit_interval else rows)

    def forward(self) -> dist.Distribution:
        posteriors = self._guide[0].conditional(transform_to(self._squash)(self.raw))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.raw.new_zeros(self.components)), posteriors)


class Hierarchical(Prior):
    """Two levels, p(z2) p(z|z2): a Normal z2, and a Normal z whose mean and scale come from it through a network.

    It goes with the posterior of the same name; their z2 is integrated out of p(x) like z (Burda et al. 2016, section 5).

    Args:
        event_shape: shape of z, the level next to x.
        top: how many numbers z2 has.
        hidden: widths of the network's hidden layers.
        activation: as in ``pa.nets.MLP``.
    """

    sites = ("z", "z2")
    support = constraints.real

    def __init__(self, event_shape: Shape | None = None, top: int = 4, hidden: int | list[int] = 128, activation: str = "Tanh"):
        nn.Module.__init__(self)
        whole_number("Hierarchical", top=top)
        self.event_shape = None if event_shape is None else as_shape(event_shape, "Hierarchical")
        self.top, self.network_recipe = Normal(top), MLP(hidden, activation)
        if self.event_shape is not None:
            self.layer = Conditional(dist.Normal, self.event_shape)
            self.network = self.network_recipe.build(self.top.event_shape, self.layer.size)

    def forward(self) -> dist.Distribution:
        """p(z2); p(z|z2) is ``given(z2)``."""
        return self.top()

    def accepts(self, z):
        """Everything: z is Normal."""
        return True

    def given(self, z2: torch.Tensor) -> dist.Distribution:
        """p(z|z2)."""
        return self.layer(apply(self.network, z2, 1))

    def draw(self):
        return pyro.sample("z", self.given(pyro.sample("z2", self.top())))

    def sample(self, n):
        return self.given(self.top().sample(torch.Size([n]))).sample()


class Flat(Prior):
    """Improper: log p(z) = 0 everywhere on its support, a name in ``torch.distributions.constraints``.

    What a classical autoencoder assumes of its code. ``support="unit_interval"`` makes a ``Delta`` posterior's code
    sigmoid. There is nothing to sample from, and log p(x) does not exist.

    >>> Flat(3)().log_prob(torch.ones(2, 3))
    tensor([0., 0.])
    """

    proper = False

    def __init__(self, event_shape: Shape | None = None, support: str = "real"):
        nn.Module.__init__(self)
        self.event_shape = None if event_shape is None else as_shape(event_shape, "Flat")
        self.limit = getattr(constraints, support, None)
        if not isinstance(self.limit, constraints.Constraint) or self.limit.event_dim != 0:
            raise ValueError(
                f"Flat: expected the name of a constraint on one number, such as 'real', 'positive' or 'unit_interval', got {support!r}"
            )

    def forward(self) -> dist.Distribution:
        return dist.ImproperUniform(constraints.independent(self.limit, len(self.event_shape)), torch.Size(), self.event_shape)


class Given(Prior):
    """Any Pyro distribution, as it is.

    Its batch shape, if any, counts as part of the event; the parameters of its transforms are trained.

    >>> Given(dist.StudentT(3.0, torch.zeros(8), 1.0))().event_shape
    torch.Size([8])
    """

    def __init__(self, distribution: dist.Distribution):
        nn.Module.__init__(self)
        if not isinstance(distribution, torch.distributions.Distribution):
            raise ValueError(
                f"prior: expected a part such as pa.priors.Normal(8) or a Pyro distribution, got {type(distribution).__name__}"
            )
        self.distribution = distribution
        self.event_shape = distribution.batch_shape + distribution.event_shape
        if len(self.event_shape) == 0:
            raise ValueError(
                f"prior: expected a distribution over vectors, got one over single numbers; use .expand([size]) on {distribution}"
            )
        if any(tensor.requires_grad for tensor in _tensors(distribution)):
            raise ValueError(
                "prior: a Pyro distribution's own tensors are not trained; use a part such as pa.priors.Normal(8, loc='learned')"
            )
        self.learned = nn.ModuleList(_modules(distribution))

    def sized(self, event_shape):
        return self

    def __getstate__(self) -> dict:
        """For copying: transforms remember their last values, which are no leaves."""
        clear = getattr(self.distribution, "clear_cache", None)
        if clear:
            clear()
        return self.__dict__

    def forward(self) -> dist.Distribution:
        return self.distribution.to_event(len(self.distribution.batch_shape))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.distribution = _mapped(self.distribution, fn)
        return self


class Flow(Given):
    """A normalizing flow: a Normal pushed through learned coupling transforms.

    Args:
        event_shape: shape of one z, a number of at least 2.
        kind: ``"spline"`` (Durkan et al. 2019; Dolatabadi et al. 2020) or ``"affine"`` (Dinh et al. 2017).
        layers: how many transforms; the entries are reversed between two of them.
        hidden: width of each transform's hidden layer.
    """

    def __init__(self, event_shape: Shape | None = None, kind: str = "spline", layers: int = 4, hidden: int = 64):
        makers = {"spline": transforms.spline_coupling, "affine": transforms.affine_coupling}
        if kind not in makers:
            raise ValueError(f"Flow: expected kind as one of {', '.join(makers)}, got {kind!r}")
        whole_number("Flow", layers=layers, hidden=hidden)
        shape = None if event_shape is None else as_shape(event_shape, "Flow")
        if shape is None:
            nn.Module.__init__(self)
            self.event_shape = None
            return
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(f"Flow: expected z as a vector of at least 2 numbers, got the shape {tuple(shape)}")
        learned = [makers[kind](shape[0], hidden_dims=[hidden]) for _ in range(layers)]
        with torch.no_grad():  # start near the identity; Pyro's splines start wild
            for parameter in nn.ModuleList(learned).parameters():
                parameter.mul_(0.1)
        flip = torch.arange(shape[0]).flip(0)
        steps = [step for each in learned for step in (each, transforms.Permute(flip))]
        super().__init__(dist.TransformedDistribution(dist.Normal(torch.zeros(shape), 1.0).to_event(1), steps))

    sized = Conditional.sized


def _held(value) -> dict:
    """What a distribution or transform holds, one level down; not a transform's inverse, which holds it in turn."""
    holds = isinstance(value, (torch.distributions.Distribution, Transform)) and not isinstance(value, nn.Module)
    return {name: item for name, item in vars(value).items() if name != "_inv"} if holds else {}


def _modules(value) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    items = value if isinstance(value, (list, tuple)) else _held(value).values()
    return [module for item in items for module in _modules(item)]


def _tensors(value) -> list[torch.Tensor]:
    """The tensors that a distribution holds, those of modules left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value if isinstance(value, (list, tuple)) else _held(value).values()
    return [tensor for item in items for tensor in _tensors(item)]


def _mapped(value, fn):
    """A copy of a distribution with ``fn`` applied to every tensor in it that no module owns."""
    if isinstance(value, torch.Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, fn) for item in value)
    held = _held(value)
    if not held:
        return value
    copied = copy.copy(value)
    copied.__dict__.update({name: _mapped(item, fn) for name, item in held.items()})
    return copied
