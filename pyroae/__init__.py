"""pyroae: autoencoders as Pyro probabilistic programs.

Choose p(z), p(x|z), q(z|x) and an objective; train the Pyro program; know how good it is.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

_HOME = {
    "Autoencoder": "model.autoencoder",
    "History": "training.fit",
    "Penalised": "objectives",
    "with_weight_prior": "objectives.weight_priors",
    "SVI": "training.step.svi",
    "fit": "training.fit",
    "together": "training.distributed",
    "pretrain": "pretraining",
    "fine_tune": "pretraining",
    "Classifier": "pretraining",
    "load": "storage",
    "save": "storage",
    "log_likelihood": "evaluation.importance",
    "ais": "evaluation.annealed",
    "bdmc": "evaluation.annealed",
    "decompose": "evaluation.decomposition",
    "aggregate": "evaluation.decomposition",
    "active_units": "evaluation.decomposition",
    "compare": "evaluation.comparison",
    "cross_check": "evaluation.crosscheck",
    "predictive_check": "evaluation.checking",
    "sbc": "evaluation.checking",
    "probe": "evaluation.representation",
    "mig": "evaluation.representation",
    "codes": "evaluation.representation",
    "reconstruction_error": "evaluation.representation",
    "denoising_gain": "evaluation.representation",
    "to_arviz": "evaluation.export",
    "impute": "evaluation.imputation",
    "elbo_terms": "evaluation.terms",
    "register": "registry",
    "jacobian": "evaluation.jacobian",
}
_MODULES = {
    "priors": "model.priors",
    "likelihoods": "model.likelihoods",
    "posteriors": "model.posteriors",
    "nets": "model.networks",
    "conditions": "model.conditions",
    "corruption": "model.corruption",
    "objectives": "objectives",
    "penalties": "objectives.penalties",
    "schedules": "objectives.schedules",
    "data": "data",
    "plots": "plots",
    "callbacks": "callbacks",
    "proposals": "evaluation.proposals",
    "recipes": "recipes",
}

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``pyroae --help`` need not wait for torch."""
    if name == "__version__":
        return version("pyroae")
    if name in _MODULES:
        return import_module(f"pyroae.{_MODULES[name]}")
    if name in _HOME:
        return getattr(import_module(f"pyroae.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pyroae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
