"""Metrics of a trained model on a data set. ``pyroae evaluate`` computes and prints every entry of ``METRICS``."""

from collections.abc import Callable
from typing import Any

from ..data import DataSet
from ..evaluation.decomposition import active_units, aggregate
from ..evaluation.representation import perplexity, probe, reconstruction_error
from ..evaluation.sparsity import sparsity
from ..model.autoencoder import Autoencoder
from ..model.posteriors.sparse import SparsePosterior

Metric = Callable[[Autoencoder, DataSet], tuple[dict[str, Any], str]]  # values by name for JSON and the report, and text for a person
_AT_MOST = 10_000  # examples, where a metric compares examples with one another


def rate(ae: Autoencoder, data: DataSet) -> tuple[dict[str, Any], str]:
    """Mutual information between x and z, and KL of the aggregate posterior from the prior."""
    result = aggregate(ae, data.test[:_AT_MOST])
    return {"mutual_information": result.mutual_information, "marginal_kl": result.marginal_kl}, str(result)


def units(ae: Autoencoder, data: DataSet) -> tuple[dict[str, Any], str]:
    """Latent dimensions whose posterior mean depends on x; of discrete codes their perplexity."""
    if hasattr(ae.posterior, "indices"):
        found = perplexity(ae, data.test)
        return {"perplexity": found.perplexity, "codes_used": found.used, "codes": found.codes}, str(found)
    result = active_units(ae, data.test)
    return {"active_units": result.active.nonzero().flatten().tolist(), "units": len(result.active)}, str(result)


def labels(ae: Autoencoder, data: DataSet) -> tuple[dict[str, Any], str]:
    """Accuracy of classifiers of the codes."""
    accuracy = probe(ae, data.train[:_AT_MOST], data.test[:_AT_MOST])
    return {"linear_probe": accuracy.linear, "nearest_neighbours": accuracy.neighbours}, str(accuracy)


def reconstruction(ae: Autoencoder, data: DataSet) -> tuple[dict[str, Any], str]:
    """Mean squared error of reconstructions, per entry of x."""
    error = reconstruction_error(ae, data.test).nanmean().item()
    return {"reconstruction_error": error}, f"mean squared error {error:.4g} per entry of x"


def sparse(ae: Autoencoder, data: DataSet) -> tuple[dict[str, Any], str]:
    """Active units, explained variance and dead units of a sparse dictionary; nothing for other models."""
    if not isinstance(ae.posterior, SparsePosterior):
        return {}, ""
    result = sparsity(ae, data.test)
    return {"l0": result.l0, "explained_variance": result.explained, "dead_units": result.dead}, str(result)


METRICS: dict[str, Metric] = {each.__name__: each for each in (rate, units, labels, reconstruction, sparse)}
