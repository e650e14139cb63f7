"""Posteriors q(z|x): conditionals on the encoder's output, sized by the prior."""

from .base import Posterior
from .experts import MixtureOfExperts, ProductOfExperts
from .flow import Flow
from .hamiltonian import Hamiltonian
from .hyperbolic import WrappedNormal
from .levels import Clusters, Hierarchical, TopDown
from .plain import (
    BernoulliGumbel,
    BernoulliStraightThrough,
    Delta,
    FromPyro,
    FullNormal,
    Laplace,
    LowRankNormal,
    Normal,
    OneHot,
    OneHotGumbel,
    OneHotStraightThrough,
    PowerSpherical,
    ProjectedNormal,
    RelaxedBernoulli,
    RelaxedOneHot,
    StudentT,
)
from .quantised import FiniteScalar, VectorQuantised
from .sparse import BatchTopK, Gated, JumpReLU, TopK

__all__ = [
    "BatchTopK",
    "Gated",
    "JumpReLU",
    "TopK",
    "BernoulliGumbel",
    "BernoulliStraightThrough",
    "Clusters",
    "Delta",
    "FiniteScalar",
    "Flow",
    "FromPyro",
    "FullNormal",
    "Hamiltonian",
    "Hierarchical",
    "Laplace",
    "LowRankNormal",
    "MixtureOfExperts",
    "Normal",
    "OneHot",
    "OneHotGumbel",
    "OneHotStraightThrough",
    "Posterior",
    "PowerSpherical",
    "ProductOfExperts",
    "ProjectedNormal",
    "RelaxedBernoulli",
    "RelaxedOneHot",
    "StudentT",
    "TopDown",
    "VectorQuantised",
    "WrappedNormal",
]


def __dir__() -> list[str]:
    return __all__
