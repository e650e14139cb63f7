"""Distributions that Pyro lacks, or whose tails it cuts off."""

from .bits import (
    Bernoulli,
    BernoulliGumbel,
    BernoulliStraightThrough,
    Categorical,
    ContinuousBernoulli,
    OneHotGumbel,
    RelaxedBits,
    RelaxedOneHotCategorical,
    Told,
)
from .combined import Beside, Seen
from .grey import DiscretizedLogistic, GreyCategorical, InUnitInterval, open_unit_interval
from .real import BestScaled, NormalMixture, UniformSphere

__all__ = [
    "Bernoulli",
    "BernoulliGumbel",
    "BernoulliStraightThrough",
    "Beside",
    "BestScaled",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GreyCategorical",
    "InUnitInterval",
    "NormalMixture",
    "OneHotGumbel",
    "RelaxedBits",
    "RelaxedOneHotCategorical",
    "Seen",
    "Told",
    "UniformSphere",
    "open_unit_interval",
]
