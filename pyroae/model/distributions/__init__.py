"""Distributions that Pyro does not have, or clamps in the tails."""

from .autoregressive import AffineAutoregressive
from .bits import (
    Bernoulli,
    BernoulliGumbel,
    BernoulliStraightThrough,
    Categorical,
    ContinuousBernoulli,
    OneHotGumbel,
    PartiallyObservedCategorical,
    RelaxedBits,
    RelaxedOneHotCategorical,
)
from .codes import CodeSequence, QuantisedPoint
from .combined import Joint, MaskedIndependent
from .grey import DiscretizedLogistic, GreyCategorical, InUnitInterval, open_unit_interval
from .hyperbolic import WrappedNormal
from .real import NormalExperts, NormalMixture, PowerSpherical, ProfiledNormal, UniformSphere
from .sparse import SparsePoint

__all__ = [
    "SparsePoint",
    "AffineAutoregressive",
    "Bernoulli",
    "BernoulliGumbel",
    "BernoulliStraightThrough",
    "Joint",
    "ProfiledNormal",
    "Categorical",
    "CodeSequence",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GreyCategorical",
    "InUnitInterval",
    "NormalExperts",
    "NormalMixture",
    "OneHotGumbel",
    "PowerSpherical",
    "QuantisedPoint",
    "RelaxedBits",
    "RelaxedOneHotCategorical",
    "MaskedIndependent",
    "PartiallyObservedCategorical",
    "UniformSphere",
    "WrappedNormal",
    "open_unit_interval",
]
