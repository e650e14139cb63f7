"""Objectives: subclasses of Pyro's ELBO, usable wherever Pyro's own are."""

from .base import Objective, default_elbo
from .bounds import CIWAE, IWAE, PIWAE, ImportanceWeighted, Renyi
from .penalised import Penalised
from .tempering import Capacity, FreeBits, Tempered

__all__ = [
    "CIWAE",
    "Capacity",
    "FreeBits",
    "IWAE",
    "ImportanceWeighted",
    "Objective",
    "PIWAE",
    "Penalised",
    "Renyi",
    "Tempered",
    "default_elbo",
]


def __dir__() -> list[str]:
    return __all__
