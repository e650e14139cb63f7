"""Likelihoods p(x|z): conditionals that know which data they are for."""

from .base import Likelihood
from .combined import Missing, Product
from .plain import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    FromPyro,
    Gamma,
    GreyLevels,
    Laplace,
    LogisticMixture,
    LogNormal,
    NegativeBinomial,
    Normal,
    OptimalNormal,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
)
from .scaled import LibrarySize, Standardised

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FromPyro",
    "Gamma",
    "GreyLevels",
    "Laplace",
    "LibrarySize",
    "Likelihood",
    "LogNormal",
    "LogisticMixture",
    "Missing",
    "NegativeBinomial",
    "Normal",
    "OptimalNormal",
    "Poisson",
    "Product",
    "Standardised",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]


def __dir__() -> list[str]:
    return __all__
