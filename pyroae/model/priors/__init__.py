"""Priors p(z): conditionals that need no network."""

from .base import Prior
from .codes import Codes, CodeSequence
from .conditioned import Conditioned
from .constrained import Constrained
from .from_distribution import Flow, FromDistribution
from .hyperbolic import WrappedNormal
from .levels import ClassAndStyle, Clusters, Hierarchical
from .mixtures import GaussianMixture, VampPrior
from .plain import (
    Bernoulli,
    Flat,
    FromPyro,
    FullNormal,
    Laplace,
    Logistic,
    Normal,
    OneHot,
    RelaxedBernoulli,
    RelaxedOneHot,
    SoftLaplace,
    Sphere,
    SpikeSlab,
    StudentT,
    Uniform,
)

__all__ = [
    "Bernoulli",
    "ClassAndStyle",
    "Clusters",
    "CodeSequence",
    "Codes",
    "Conditioned",
    "Constrained",
    "Flat",
    "Flow",
    "FromPyro",
    "FullNormal",
    "GaussianMixture",
    "FromDistribution",
    "Hierarchical",
    "Laplace",
    "Logistic",
    "Normal",
    "OneHot",
    "Prior",
    "RelaxedBernoulli",
    "RelaxedOneHot",
    "SoftLaplace",
    "Sphere",
    "SpikeSlab",
    "StudentT",
    "Uniform",
    "VampPrior",
    "WrappedNormal",
]


def __dir__() -> list[str]:
    return __all__
