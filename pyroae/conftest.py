"""What the examples in docstrings share: ``pa``, ``torch``, a small VAE ``vae`` and 20 rows ``x`` of 16 binary values for it."""

import matplotlib.pyplot as plt
import pytest
import torch

import pyroae as pa


@pytest.fixture(autouse=True)
def _shared_by_examples(doctest_namespace):
    """A new model for each example, since some of them train it."""
    torch.manual_seed(0)
    nets = pa.nets.MLP(8), pa.nets.MLP(8)
    vae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(16), pa.posteriors.Normal(), *nets)
    doctest_namespace.update(pa=pa, torch=torch, vae=vae, x=torch.rand(20, 16).round())


@pytest.fixture(autouse=True)
def _figures():
    """pyplot keeps the figures of an example, and warns at the 21st."""
    yield
    plt.close("all")
