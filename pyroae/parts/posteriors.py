"""Posteriors q(z|x): conditionals on the encoder's output, sized by the prior."""

import itertools

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.distributions import constraints

from ..checks import whole_number
from ..part import Part
from . import distributions
from .conditional import Conditional, Relaxed, Shape, as_shape, in_words, pyro_family
from .networks import MLP, apply, near_identity
from .priors import Prior


class Posterior(Conditional, Part):
    """A distribution over one z given the encoder's output.

    >>> import pyroae as pa
    >>> isinstance(pa.posteriors.Delta(), Posterior)
    True
    """

    sites = ("z",)
    infer: dict = {}  # what Pyro is told about its site

    def draw(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        """The Pyro statements that draw z inside the plate over the data, given what the encoder says and the condition's numbers."""
        return pyro.sample("z", self(h), infer=self.infer)

    def centre(self, h: Tensor) -> tuple[Tensor, ...]:
        """A point in the middle: z, and the level above where the decoder may see it."""
        return (self(h).mean,)

    def fitted(self, prior: Prior) -> "Posterior":
        """This posterior for that prior's z.

        Raises:
            ValueError: the two disagree on the shape of z, or the posterior draws z where the prior has no mass.
        """
        name, shape = type(self).__name__, prior.event_shape
        if self.event_shape not in (None, shape):
            raise ValueError(
                f"posterior {name}: expected z of the prior's shape {tuple(shape)}, got {tuple(self.event_shape)}; "
                "leave the posterior's shape out and it follows the prior"
            )
        if set(self.sites) != set(prior.sites):
            raise ValueError(
                f"posterior {name}: draws {' and '.join(self.sites)}, but the prior {type(prior).__name__} {' and '.join(prior.sites)}; "
                "priors and posteriors with several levels go together, such as pa.priors.Hierarchical and pa.posteriors.Hierarchical"
            )
        fitted = self._within(prior.support).sized(shape)
        fitted._check_inside(prior)
        return fitted

    @torch.no_grad()
    def _check_inside(self, prior: Prior):
        """Draw a few z for random numbers from an encoder, and see whether the prior has mass there."""
        try:
            with torch.random.fork_rng([]):
                like = next(itertools.chain(self.parameters(), self.buffers()), torch.zeros(()))
                inside = prior.accepts(self(torch.randn(16, self.size, dtype=like.dtype, device=like.device)).sample())
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ValueError(f"posterior {type(self).__name__}: cannot draw codes for the prior {type(prior).__name__}: {error}") from error
        if not inside:
            raise ValueError(
                f"posterior {type(self).__name__}: draws z outside the support of the prior {type(prior).__name__}; "
                "use a posterior with that support, or a prior on the real line"
            )

    def _within(self, support: constraints.Constraint) -> "Posterior":
        if self.family.support.is_discrete and not support.is_discrete:
            raise ValueError(
                f"posterior {type(self).__name__}: draws categories or bits, but the prior's z is {in_words(support)}; "
                "use the prior OneHot or Bernoulli that goes with it"
            )
        if support is not constraints.real and self.family.support is constraints.real:
            raise ValueError(
                f"posterior {type(self).__name__}: draws any real z, but the prior's z is {in_words(support)}; "
                "use a prior on the real line or the posterior Delta"
            )
        return self


class Normal(Posterior):
    """Independent Normals: mean and scale from the encoder, or with a fixed or learned scale.

    >>> Normal(3).size, Normal(3)(torch.zeros(5, Normal(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, scale: float | str | None = None):
        super().__init__(dist.Normal, event_shape, scale=scale)


class Laplace(Posterior):
    """Independent Laplaces: location and scale from the encoder.

    >>> Laplace(3).size, Laplace(3)(torch.zeros(5, Laplace(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, scale: float | str | None = None):
        super().__init__(dist.Laplace, event_shape, scale=scale)


class StudentT(Posterior):
    """Independent Student's t: location and scale from the encoder; heavy tails make importance weights safe.

    >>> StudentT(3).size, StudentT(3)(torch.zeros(5, StudentT(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, df: float | str | None = 5.0, scale: float | str | None = None):
        super().__init__(dist.StudentT, event_shape, df=df, scale=scale)


class FullNormal(Posterior):
    """A Normal with a full covariance: mean and Cholesky factor from the encoder.

    >>> FullNormal(3).size, FullNormal(3)(torch.zeros(5, FullNormal(3).size)).event_shape
    (12, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.MultivariateNormal, event_shape)


class LowRankNormal(Posterior):
    """A Normal with covariance W W' + diagonal: mean, W of the given rank and the diagonal from the encoder.

    >>> LowRankNormal(3).size, LowRankNormal(3)(torch.zeros(5, LowRankNormal(3).size)).event_shape
    (12, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, rank: int = 2):
        whole_number("LowRankNormal", rank=rank)
        self.__dict__["rank"] = rank
        super().__init__(dist.LowRankMultivariateNormal, event_shape)

    def _shape(self, name):
        return self.event_shape + torch.Size([self.rank]) if name == "cov_factor" else super()._shape(name)


class ProjectedNormal(Posterior):
    """A direction on the unit sphere, for the prior Sphere: a Normal around the encoder's output, projected; in 2 to 4 dimensions.

    >>> ProjectedNormal(3).size, ProjectedNormal(3)(torch.zeros(5, ProjectedNormal(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.ProjectedNormal, event_shape)
        if self.event_shape is not None and not 2 <= self.event_shape[-1] <= 4:
            raise ValueError(f"ProjectedNormal: Pyro knows its density in 2, 3 and 4 dimensions, got {self.event_shape[-1]}")


class OneHot(Posterior):
    """A category, for the prior OneHot: summed out exactly, under TraceEnum_ELBO, so meant for few categories.

    >>> OneHot(3).size, OneHot(3)(torch.zeros(5, OneHot(3).size)).event_shape
    (3, torch.Size([3]))
    """

    infer = {"enumerate": "parallel"}

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.OneHotCategorical, event_shape)


class OneHotStraightThrough(Posterior):
    """A category, for the prior OneHot: drawn, its gradient that of its probabilities (biased; Bengio et al. 2013).

    >>> OneHotStraightThrough(3).size, OneHotStraightThrough(3)(torch.zeros(5, OneHotStraightThrough(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.OneHotCategoricalStraightThrough, event_shape)


class BernoulliStraightThrough(Posterior):
    """Bits, for the prior Bernoulli: drawn, their gradient that of their probabilities (biased; Bengio et al. 2013).

    >>> BernoulliStraightThrough(3).size, BernoulliStraightThrough(3)(torch.zeros(5, BernoulliStraightThrough(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(distributions.BernoulliStraightThrough, event_shape)


class RelaxedOneHot(Relaxed, Posterior):
    """A point of the simplex, for the prior of the same name: the Concrete distribution around the encoder's logits.

    >>> RelaxedOneHot(3).size, RelaxedOneHot(3)(torch.zeros(5, RelaxedOneHot(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.RelaxedOneHotCategorical, event_shape, temperature)


class RelaxedBernoulli(Relaxed, Posterior):
    """Numbers between 0 and 1, for the prior of the same name: binary Concrete around the encoder's logits.

    >>> RelaxedBernoulli(3).size, RelaxedBernoulli(3)(torch.zeros(5, RelaxedBernoulli(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.RelaxedBits, event_shape, temperature)


class OneHotGumbel(Relaxed, Posterior):
    """A category, for the prior OneHot: drawn, its gradient that of its relaxation (straight-through Gumbel-softmax; Jang et al. 2017).

    >>> OneHotGumbel(3).size, OneHotGumbel(3)(torch.zeros(5, OneHotGumbel(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.OneHotGumbel, event_shape, temperature)


class BernoulliGumbel(Relaxed, Posterior):
    """Bits, for the prior Bernoulli: drawn, their gradient that of their relaxation (Maddison et al. 2017).

    >>> BernoulliGumbel(3).size, BernoulliGumbel(3)(torch.zeros(5, BernoulliGumbel(3).size)).event_shape
    (3, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, temperature: float = 0.67):
        super().__init__(distributions.BernoulliGumbel, event_shape, temperature)


class Flow(Posterior):
    """Another posterior pushed through inverse autoregressive transforms (Kingma et al. 2016).

    Args:
        event_shape: shape of one z.
        base: the posterior transformed; by default Normal.
        layers: how many transforms; the entries are reversed between two of them.
        hidden: width of each transform's hidden layer.

    >>> Flow(3).size, Flow(3)(torch.zeros(5, Flow(3).size)).event_shape
    (6, torch.Size([3]))
    """

    def __init__(self, event_shape: Shape | None = None, base: Posterior | None = None, layers: int = 2, hidden: int = 64):
        nn.Module.__init__(self)
        whole_number("Flow", layers=layers, hidden=hidden)
        base = base or Normal()
        self.family, self.widths, self.size = base.family, [], 0
        self.event_shape = base.event_shape if event_shape is None else as_shape(event_shape, "Flow")
        if self.event_shape is not None:
            self.base = base.sized(self.event_shape)
            self.widths, self.size = self.base.widths, self.base.size
            steps = [transforms.affine_autoregressive(self.event_shape[0], hidden_dims=[hidden]) for _ in range(layers)]
            self.steps = nn.ModuleList(steps)
            near_identity(self.steps)

    def forward(self, h: Tensor) -> dist.Distribution:
        """q(z|x), whose draws are fast; the density of other values takes a step for each entry."""
        order = torch.arange(self.event_shape[0], device=h.device).flip(0)
        chain = [step for each in self.steps for step in (each, transforms.Permute(order, cache_size=1))]  # each remembers its own draw
        return TransformedPosterior(self.base(h), chain)


class TransformedPosterior(dist.TransformedDistribution):
    """A transformed distribution that names a middle where a mean is asked for."""

    @property
    def mean(self) -> Tensor:
        """The transformed mean of the base: a point in the middle, not the mean itself."""
        point = self.base_dist.mean
        for step in self.transforms:
            point = step(point)
        return point


class _Levels(Posterior):
    """A posterior with a level above z, of ``top`` numbers, as many as the prior's."""

    top: int | None

    def fitted(self, prior):
        """As every posterior's, with the size of the upper level from the prior too."""
        top = prior.top.event_shape[0] if hasattr(prior, "top") else self.top
        return super(_Levels, self if self.top == top else self.remade(top=top)).fitted(prior)


class Hierarchical(_Levels):
    """q(z|x) q(z2|z), for the prior of the same name: Normals, the second from the first through a network.

    Args:
        event_shape: shape of z, the level next to x.
        hidden: widths of the network's hidden layers.
        activation: as in ``pa.nets.MLP``.
        top: how many numbers z2 has; by default as the prior says.

    >>> import pyroae as pa
    >>> vae = pa.recipes.vae(pa.data.load(torch.rand(20, 16).round()), code=2, hidden=8)
    >>> two = vae.replace(prior=pa.priors.Hierarchical(2, top=1), posterior=Hierarchical())
    >>> two.encode(torch.zeros(3, 16)).event_shape
    torch.Size([2])
    """

    sites = ("z", "z2")

    def __init__(self, event_shape: Shape | None = None, hidden: int | list[int] = 128, activation: str = "Tanh", top: int | None = None):
        super().__init__(dist.Normal, event_shape)
        self.top = top
        if top is not None and self.event_shape is not None:
            self.upper = Conditional(dist.Normal, top)
            self.network = MLP(hidden, activation).build(self.event_shape, self.upper.size)

    def draw(self, h, c=None):
        z = pyro.sample("z", self(h))
        pyro.sample("z2", self.upper(apply(self.network, z, len(self.event_shape))))
        return z


class _TopDown(_Levels):
    """q(top|x) q(z|x, top): of the encoder's numbers the first make the top; the others, with the top beside them, z."""

    family_above: type

    def __init__(
        self,
        event_shape: Shape | None = None,
        features: int = 64,
        hidden: int | list[int] = 128,
        activation: str = "ReLU",
        top: int | None = None,
    ):
        super().__init__(dist.Normal, event_shape)
        whole_number(type(self).__name__, features=features)
        self.top = top
        if top is not None and self.event_shape is not None:
            self.upper, self.layer = Conditional(self.family_above, top), Conditional(dist.Normal, self.event_shape)
            self.network = MLP(hidden, activation).build(torch.Size([features + top]), self.layer.size)
            self.widths, self.size = [self.upper.size, features], self.upper.size + features

    def below(self, features: Tensor, top: Tensor) -> dist.Distribution:
        """q(z|x, top)."""
        return self.layer(apply(self.network, features, 1, top))


class TopDown(_TopDown):
    """q(z2|x) q(z|x, z2), for the prior Hierarchical: Normals, the upper one first (Tomczak & Welling 2018, eq. 13).

    ``encode(x)`` is q(z|x, z2) at the mean of z2.

    Args:
        event_shape: shape of z, the level next to x.
        features: how many numbers the encoder gives besides those of z2.
        hidden: widths of the hidden layers of the network that makes z of them and z2.
        activation: as in ``pa.nets.MLP``.
        top: how many numbers z2 has; by default as the prior says.

    >>> import pyroae as pa
    >>> vae = pa.recipes.vae(pa.data.load(torch.rand(20, 16).round()), code=2, hidden=8)
    >>> two = vae.replace(prior=pa.priors.Hierarchical(2, top=1), posterior=TopDown())
    >>> two.reconstruct(torch.zeros(3, 16)).shape
    torch.Size([3, 16])
    """

    sites = ("z", "z2")
    family_above = dist.Normal

    def forward(self, h):
        """q(z|x, z2) at the mean of z2."""
        above, features = h.split(self.widths, -1)
        return self.below(features, self.upper(above).mean)

    def centre(self, h):
        """The means of z and z2."""
        above, _ = h.split(self.widths, -1)
        return self(h).mean, self.upper(above).mean

    def draw(self, h, c=None):
        above, features = h.split(self.widths, -1)
        pyro.sample("z", self.below(features, pyro.sample("z2", self.upper(above))))


class Clusters(_TopDown):
    """q(y|x) q(z|x, y), for the priors Clusters and ClassAndStyle: a category, summed out, and a Normal z that depends on it.

    ``encode(x).mixture_distribution.probs`` is q(y|x). Where the condition PartialLabels tells the category, q(y|x) is
    certain of it. The arguments are those of TopDown.

    >>> import pyroae as pa
    >>> vae = pa.recipes.vae(pa.data.load(torch.rand(20, 16).round()), code=2, hidden=8)
    >>> mixture = vae.replace(prior=pa.priors.Clusters(2, clusters=4), posterior=Clusters())
    >>> mixture.encode(torch.zeros(3, 16)).mixture_distribution.probs.shape
    torch.Size([3, 4])
    """

    sites = ("z", "y")
    family_above = dist.OneHotCategorical

    def forward(self, h):
        """q(z|x), a mixture over the categories."""
        logits, features = h.split(self.widths, -1)
        each = torch.eye(self.top, dtype=h.dtype, device=h.device)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), self.below(features.unsqueeze(-2), each))

    def centre(self, h):
        """The mean of z in the likeliest category, and that category."""
        logits, features = h.split(self.widths, -1)
        y = nn.functional.one_hot(logits.argmax(-1), self.top).to(h.dtype)
        return self.below(features, y).mean, y

    def draw(self, h, c=None):
        logits, features = h.split(self.widths, -1)
        y = pyro.sample("y", distributions.Told(logits, c), infer={"enumerate": "parallel"})
        pyro.sample("z", self.below(features, y))


class Delta(Posterior):
    """A point: the code itself, as in every deterministic autoencoder.

    It takes its support from the prior: one on the unit interval makes the code sigmoid, one on the positive numbers
    exponential.

    >>> Delta(3)(torch.ones(5, 3)).mean.shape
    torch.Size([5, 3])
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Delta, event_shape, limits={"v": constraints.real})

    def _within(self, support):
        within = self.remade()
        within.limits = {"v": support}
        return within

    def sized(self, event_shape):
        sized = super().sized(event_shape)
        sized.limits = self.limits
        return sized


class FromPyro(Posterior):
    """Any Pyro distribution by name; what is not given as a keyword comes from the encoder.

    >>> FromPyro("Cauchy", 3)(torch.zeros(5, 6)).event_shape
    torch.Size([3])
    """

    def __init__(self, family: str | type, event_shape: Shape | None = None, **parameters):
        super().__init__(pyro_family(family, "FromPyro"), event_shape, **parameters)
