"""Invariant 2: with a Delta posterior the loss is -log p(x, z), and every classical loss equals its program's loss."""

import math

import pyro
import pytest
import torch
from conftest import LOG_2PI
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch.nn import functional as F

import pyroae as pa


def point(prior, likelihood, hidden=16, **parts):
    return pa.Autoencoder(prior, likelihood, pa.posteriors.Delta(), pa.nets.MLP(hidden), pa.nets.MLP(hidden), **parts)


PRIORS = {
    "Flat": lambda: pa.priors.Flat(5),
    "Normal": lambda: pa.priors.Normal(5, scale=2.0),
    "Laplace": lambda: pa.priors.Laplace(5, scale=0.3),
    "StudentT": lambda: dist.StudentT(3.0, torch.zeros(5), 1.0),
    "mixture": lambda: dist.MixtureOfDiagNormals(torch.randn(3, 5), torch.ones(3, 5), torch.zeros(3)),
}
ELBOS = {"Trace": Trace_ELBO, "TraceMeanField": TraceMeanField_ELBO, "TraceGraph": TraceGraph_ELBO}


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("prior", PRIORS)
def test_point_posterior_loss_is_minus_log_joint(prior, elbo, digits):
    ae, x = point(PRIORS[prior](), pa.likelihoods.Bernoulli(64)), digits.test.x[:32]
    z = ae.encode(x).mean
    joint = ae.decode(z).log_prob(x).sum() + ae.prior().log_prob(z).sum()
    loss = ELBOS[elbo]().loss(ae.model, ae.guide, x)
    assert loss == pytest.approx(-joint.item(), rel=1e-5)


@pytest.mark.parametrize("elbo", ["Trace", "TraceMeanField"])
def test_its_gradient_is_the_gradient_of_minus_log_joint(elbo, digits):
    ae, x = point(pa.priors.Laplace(5), pa.likelihoods.Normal(64, scale=1.0)), digits.test.x[:32]
    z = ae.encode(x).mean
    direct = torch.autograd.grad(-ae.decode(z).log_prob(x).sum() - ae.prior().log_prob(z).sum(), list(ae.parameters()))
    ours = torch.autograd.grad(ELBOS[elbo]().differentiable_loss(ae.model, ae.guide, x), list(ae.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(direct, ours, strict=True))


# --- the classical losses, written here as their papers write them ---


def encoded(ae, x):
    """f(x) and g(f(x)) by the networks alone."""
    h = ae.encoder(x)
    return h, ae.decoder(h)


def squared_error(x, r):
    return 0.5 * (x - r).square().sum(1) + 32 * LOG_2PI


def cross_entropy(x, logits):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def sigmoid_code(ae, x):
    h = ae.encoder(x).sigmoid()
    return h, ae.decoder(h)


def classical_plain(ae, x):
    return squared_error(x, encoded(ae, x)[1]).mean()


def classical_binary(ae, x):
    return cross_entropy(x, encoded(ae, x)[1]).mean()


def classical_sparse(ae, x):
    h, r = encoded(ae, x)
    return (squared_error(x, r) + 2.0 * h.abs().sum(1) + 128 * math.log(2 * 0.5)).mean()


def classical_sparse_kl(ae, x):
    h, r = sigmoid_code(ae, x)
    active = h.mean(0)
    kl = 0.1 * torch.log(0.1 / active) + 0.9 * torch.log(0.9 / (1 - active))
    return squared_error(x, r).mean() + 0.2 * kl.sum()


def classical_contractive(ae, x):
    """The closed form for one sigmoid layer: sum_j (h_j (1 - h_j))^2 ||W_j||^2."""
    h, r = sigmoid_code(ae, x)
    rows = ae.encoder[-1].weight.square().sum(1)
    return (squared_error(x, r) + 0.1 * ((h * (1 - h)).square() * rows).sum(1)).mean()


def classical_vae(ae, x):
    """Kingma & Welling's appendix B, with the reconstruction at the posterior mean (its scale is made tiny)."""
    mu, log_sigma = ae.encoder(x).split(8, 1)
    kl = 0.5 * (mu**2 + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1)
    return (cross_entropy(x, ae.decoder(mu)) + kl).mean()


CLASSICAL = {
    "autoencoder": (lambda data: pa.recipes.autoencoder(data), classical_plain),
    "autoencoder, binary": (
        lambda data: pa.recipes.autoencoder(data).replace(likelihood=pa.likelihoods.Bernoulli(64)),
        classical_binary,
    ),
    "sparse": (lambda data: pa.recipes.sparse(data, scale=0.5), classical_sparse),
    "sparse_kl": (lambda data: pa.recipes.sparse_kl(data), classical_sparse_kl),
    "contractive": (lambda data: pa.recipes.contractive(data), classical_contractive),
}


@pytest.mark.parametrize("name", CLASSICAL)
def test_classical_losses_equal_the_programs_loss(name, grey):
    recipe, classical = CLASSICAL[name]
    ae = recipe(grey)
    x = (grey.test.x[:50] > 0.5).float() if "binary" in name else grey.test.x[:50]
    objective = ae.objective or TraceMeanField_ELBO()
    ours = objective.differentiable_loss(ae.model, ae.guide, x) / len(x)
    theirs = classical(ae, x)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    parameters = list(ae.parameters())
    gradients = torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_vae_loss_is_reconstruction_plus_closed_form_kl(digits):
    ae, x = pa.recipes.vae(digits), digits.test.x[:50]
    with torch.no_grad():
        ae.encoder[-1].weight[8:].zero_(), ae.encoder[-1].bias[8:].fill_(-12.0)  # sigma = e^-12: the draw is the mean
    loss = TraceMeanField_ELBO().loss(ae.model, ae.guide, x) / len(x)
    assert loss == pytest.approx(classical_vae(ae, x).item(), rel=1e-4)


@pytest.mark.parametrize("corruption", ["Masking", "BernoulliMask", "Gaussian", "SaltPepper"])
def test_denoising_loss_compares_with_the_clean_input(corruption, grey):
    """E l(x, g(f(x~))) with the same noise, drawn from the same seed."""
    ae = pa.recipes.denoising(grey).replace(corruption=getattr(pa.corruption, corruption)())
    x = grey.test.x[:50]
    torch.manual_seed(3)
    ours = TraceMeanField_ELBO().loss(ae.train().model, ae.guide, x) / len(x)
    torch.manual_seed(3)
    theirs = squared_error(x, encoded(ae, ae.corruption(x))[1]).mean().item()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours != pytest.approx(classical_plain(ae, x).item(), rel=1e-5)


# --- penalties ---


def test_contractive_is_autograds_jacobian_for_a_deep_encoder(grey):
    x = grey.test.x[:6]
    ae = point(pa.priors.Flat(5), pa.likelihoods.Normal(64, scale=1.0)).replace(encoder=pa.nets.MLP([16, 8], activation="Tanh"))
    loss = pa.Penalised(pa.penalties.Contractive(0.7)).loss(ae.model, ae.guide, x)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda one: ae.encode(one[None]).mean[0], row) for row in x])
    expected = TraceMeanField_ELBO().loss(ae.model, ae.guide, x) + 0.7 * jacobians.square().sum().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_contractive_probes_are_unbiased(grey):
    ae, x = pa.recipes.contractive(grey, latent_dim=6), grey.test.x[:20].requires_grad_()
    q = ae.encode(x)
    exact = pa.penalties.Contractive(1.0)(x, q.mean, q).item()
    draws = torch.stack([pa.penalties.Contractive(1.0, probes=8)(x, q.mean, q) for _ in range(300)]).detach()
    assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / 300**0.5


def test_contractive_on_a_linear_encoder_is_l2_on_its_weights(grey):
    ae, x = point(pa.priors.Flat(5), pa.likelihoods.Normal(64, scale=1.0), hidden=[]), grey.test.x[:20].requires_grad_()
    q = ae.encode(x)
    assert pa.penalties.Contractive(1.0)(x, q.mean, q).item() == pytest.approx(ae.encoder[-1].weight.square().sum().item(), rel=1e-5)


def test_l2_penalty_is_a_normal_prior(grey):
    x = grey.test.x[:20]
    flat = point(pa.priors.Flat(5), pa.likelihoods.Normal(64, scale=1.0))
    normal = flat.replace(prior=pa.priors.Normal(5, scale=0.5))
    penalised = pa.Penalised(pa.penalties.L2(2.0)).loss(flat.model, flat.guide, x)
    constant = 20 * 5 * (0.5 * LOG_2PI + math.log(0.5))
    assert penalised + constant == pytest.approx(TraceMeanField_ELBO().loss(normal.model, normal.guide, x), rel=1e-5)


@pytest.mark.parametrize(
    "elbo",
    [Trace_ELBO(), TraceMeanField_ELBO(num_particles=3), Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)],
    ids=["Trace", "sequential", "vectorized"],
)
@pytest.mark.parametrize(
    "penalty", [pa.penalties.L2(1.0), pa.penalties.KLSparsity(), pa.penalties.Contractive(0.1)], ids=["L2", "KL", "contractive"]
)
def test_a_penalty_adds_the_same_to_every_elbo(penalty, elbo, grey):
    ae, x = pa.recipes.contractive(grey, latent_dim=6), grey.test.x[:20]
    added = pa.Penalised(penalty, elbo).loss(ae.model, ae.guide, x) - elbo.loss(ae.model, ae.guide, x)
    y = x.clone().requires_grad_()
    q = ae.encode(y)
    assert added == pytest.approx(20 * penalty(y, q.mean, q).item(), rel=1e-2)


def test_a_penalty_is_not_part_of_the_model(grey):
    ae, x = pa.recipes.contractive(grey), grey.test.x[:20]
    plain = ae.replace(objective=None)
    assert pa.elbo_terms(ae, x).elbo.tolist() == pa.elbo_terms(plain, x).elbo.tolist()


def test_penalised_works_in_plain_svi_and_with_a_users_function(grey):
    ae, x = pa.recipes.autoencoder(grey), grey.train.x[:128]
    objective = pa.Penalised(lambda x, z, q: 0.1 * z.abs().sum(1).mean())
    svi = SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
    losses = [svi.step(x) for _ in range(30)]
    assert losses[-1] < losses[0] and svi.evaluate_loss(x) < losses[0]
