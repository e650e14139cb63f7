"""Priors on weights: a Normal one is weight decay, a Laplace one L1, once for a data set."""

import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader

import pyroae as pa

NOISE = 0.7  # the standard deviation of the output, s_D


def autoencoder():
    torch.manual_seed(3)
    parts = pa.priors.Flat(3), pa.likelihoods.Normal(6, scale=NOISE), pa.posteriors.Delta(), pa.nets.MLP(5), pa.nets.MLP(5)
    return pa.Autoencoder(*parts).double()


def plain(batch_size, rate, decay=0.0, lasso=0.0, epochs=7):
    """Plain PyTorch: squared error, SGD with weight decay on the matrices, or an L1 penalty on them."""
    ae = autoencoder()
    encoder, decoder = ae.encoder, ae.decoder
    matrices = [layer.weight for net in (encoder, decoder) for layer in net if isinstance(layer, nn.Linear)]
    biases = [layer.bias for net in (encoder, decoder) for layer in net if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.SGD([{"params": matrices, "weight_decay": decay}, {"params": biases}], lr=rate)
    for _ in range(epochs):
        for x in DATA.split(batch_size):
            loss = 0.5 * (x - decoder(encoder(x))).square().sum() + lasso * sum(w.abs().sum() for w in matrices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return matrices + biases


def bayesian(batch_size, rate, prior, epochs=7):
    """The Pyro program with that prior, by the same SGD."""
    ae = autoencoder()
    model, guide = pa.with_weight_prior(ae, prior, num_data=len(DATA))
    batches = DataLoader(DATA, batch_size)
    pa.fit(model, batches, guide=guide, epochs=epochs, optimizer=torch.optim.SGD, lr=rate, device="cpu", progress=False)
    layers = [layer for net in (ae.encoder, ae.decoder) for layer in net if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers] + [layer.bias for layer in layers]


DATA = torch.randn(48, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [48, 16])
def test_normal_prior_is_weight_decay(batch_size):
    """-log p, times s_D^2: squared error / 2 + (s_D^2 / s_w^2) |w|^2 / 2, the latter once for a data set."""
    decay = NOISE**2 / 0.3**2
    theirs = plain(batch_size, 2e-3, decay=decay * batch_size / 48)
    ours = bayesian(batch_size, 2e-3 * NOISE**2, dist.Normal(0.0, 0.3))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert not torch.allclose(theirs[0], plain(batch_size, 2e-3)[0], atol=1e-3)


@pytest.mark.parametrize("batch_size", [48, 16])
def test_laplace_prior_is_l1(batch_size):
    theirs = plain(batch_size, 2e-3, lasso=NOISE**2 / 0.3 * batch_size / 48)
    ours = bayesian(batch_size, 2e-3 * NOISE**2, dist.Laplace(0.0, 0.3))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert not torch.allclose(theirs[0], plain(batch_size, 2e-3)[0], atol=1e-3)


ELBOS = {
    "Trace": Trace_ELBO,
    "TraceMeanField": TraceMeanField_ELBO,
    "TraceGraph": TraceGraph_ELBO,
    "vectorized": lambda: Trace_ELBO(3, 1, vectorize_particles=True),
    "Penalised": lambda: pa.Penalised(pa.penalties.L2(0.1)),
    "IWAE": lambda: pa.objectives.IWAE(5),
    "DReG": lambda: pa.objectives.IWAE(5, gradient="dreg"),
    "PIWAE": lambda: pa.objectives.PIWAE(2, groups=3),
    "FreeBits": lambda: pa.objectives.FreeBits(0.3, particles=2),
}


@pytest.mark.parametrize("name", ELBOS)
def test_any_elbos_loss_has_the_prior_once_for_a_data_set(name, digits):
    ae, x = small_vae(), digits.train.x[:100]
    model, guide = pa.with_weight_prior(ae, dist.Laplace(0.0, 0.2), num_data=400)
    matrices = [p for p in ae.parameters() if p.dim() > 1]
    assert len(model.weights()) == len(matrices) == 4
    losses = []
    for programs in ((model, guide), (ae.model, ae.guide)):
        torch.manual_seed(0)
        losses.append(ELBOS[name]().loss(*programs, x))
    log_prior = sum(dist.Laplace(0.0, 0.2).log_prob(w).sum() for w in matrices).item()
    assert losses[0] - losses[1] == pytest.approx(-log_prior * 100 / 400, rel=1e-3)


def test_it_trains_the_networks_given_in_fit_and_in_svi(digits):
    ae, x = small_vae(), digits.train.x
    model, guide = pa.with_weight_prior(ae, dist.Normal(0.0, 0.5), num_data=len(x))
    before = pa.elbo_terms(ae, x).elbo.mean()
    history = pa.fit(model, digits.train, guide=guide, epochs=4, progress=False)
    assert history.objective == "TraceMeanField_ELBO" and history.loss[-1] < history.loss[0]
    middle = pa.elbo_terms(ae, x).elbo.mean()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    for _ in range(30):
        svi.step(x)
    assert before < middle < pa.elbo_terms(ae, x).elbo.mean()


def test_shared_weights_count_once(grey):
    ae = pa.recipes.autoencoder(grey).replace(decoder=pa.nets.Tied())
    model, _ = pa.with_weight_prior(ae, dist.Normal(0.0, 1.0), num_data=10)
    assert len(model.weights()) == len({id(p) for p in ae.parameters() if p.dim() > 1})


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_data": 0}, "expected num_data as a whole number"),
        ({"prior": dist.Normal(torch.zeros(3), 1.0)}, "the prior of one weight"),
        ({"prior": 0.1}, "the prior of one weight.*got 0.1"),
        ({"model": lambda x: x, "guide": lambda x: x}, "that are modules"),
        ({"model": nn.Identity(), "guide": nn.Identity()}, "no parameter called weight"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    given = {"model": autoencoder(), "prior": dist.Normal(0.0, 1.0), "num_data": 10} | arguments
    with pytest.raises(ValueError, match=words):
        pa.with_weight_prior(**given)


def test_an_autoencoders_own_objective_stays(digits):
    ae = pa.recipes.contractive(digits, latent_dim=4, hidden=8)
    model, guide = pa.with_weight_prior(ae, dist.Normal(0.0, 0.5), num_data=len(digits.train))
    history = pa.fit(model, digits.train, guide=guide, epochs=1, progress=False)
    assert history.objective == type(ae.objective).__name__ == "Penalised"
