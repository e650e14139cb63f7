"""``fit_prior``: priors fitted to codes against closed forms, and log p(x) of deterministic autoencoders."""

import math

import pytest
import torch
from pyro import distributions as dist
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import nn

import pyroae as pa

DOUBLE = torch.float64


def normal(mean, covariance):
    return dist.MultivariateNormal(mean, covariance)


@pytest.fixture(scope="module")
def pca():
    """Correlated data (2000, 6), their probabilistic PCA with 2 dimensions, and its maximum-likelihood noise variance."""
    torch.manual_seed(1)
    x = torch.randn(2000, 6, dtype=DOUBLE) @ torch.randn(6, 6, dtype=DOUBLE) * torch.tensor([2, 1.5, 1, 0.5, 0.4, 0.3]).double()
    found = PCA(2).fit(x)
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    axes = torch.as_tensor(found.components_, dtype=DOUBLE).T  # (6, 2)
    return x, x.mean(0), axes, values[:2], values[2:].mean()


def linear(x, mean, encoder, shift, decoder, noise, posterior, prior):
    """x -> encoder (x - mean), z -> mean + decoder z, in double precision."""
    up, down = nn.Linear(6, 2), nn.Linear(2, 6)
    ae = pa.Autoencoder(prior, pa.likelihoods.Normal(6, scale=1.0), posterior, up, down).double()
    with torch.no_grad():
        ae.encoder.weight.copy_(encoder), ae.encoder.bias.copy_(shift - encoder @ mean)
        ae.decoder.weight.copy_(decoder), ae.decoder.bias.copy_(mean)
        ae.likelihood.scale.fill_(math.sqrt(noise))
    return ae


def test_a_gaussian_on_draws_of_the_exact_posterior_gives_probabilistic_pca(pca):
    """Tipping & Bishop 1999, eq. 7: the maximum is where the aggregate posterior is the prior; here z is turned and scaled."""
    x, mean, axes, values, noise = pca
    w = axes * (values - noise).sqrt()
    turn = torch.tensor([[1.0, 0.7], [-0.4, 2.0]], dtype=DOUBLE)  # z' = turn z
    covariance = torch.linalg.inv(torch.eye(2, dtype=DOUBLE) + w.T @ w / noise)
    factor = torch.linalg.cholesky(turn @ covariance @ turn.T)
    ae = linear(x, mean, turn @ covariance @ w.T / noise, turn.new_zeros(2), w @ turn.inverse(), noise,
                pa.posteriors.FromPyro("MultivariateNormal", scale_tril=factor.tolist()), pa.priors.Normal(2))  # fmt: skip
    with torch.no_grad():
        ae.posterior.scale_tril.copy_(factor)
    fitted = pa.fit_prior(ae, x, pa.priors.FullNormal())
    assert torch.allclose(fitted.prior().covariance_matrix, turn @ turn.T, rtol=0.03, atol=0.02)
    exact = normal(mean, w @ w.T + noise * torch.eye(6, dtype=DOUBLE)).log_prob(x).mean()
    down = fitted.decoder.weight
    ours = normal(mean + down @ fitted.prior().mean, down @ fitted.prior().covariance_matrix @ down.T + noise * torch.eye(6, dtype=DOUBLE))
    assert ours.log_prob(x).mean().item() == pytest.approx(exact.item(), abs=1e-4)
    assert pa.log_likelihood(fitted, x[:50], particles=500).mean == pytest.approx(ours.log_prob(x[:50]).mean().item(), abs=0.01)


@pytest.mark.parametrize("diagonal", [True, False])
def test_a_linear_autoencoder_gets_its_normal_p_of_x(pca, diagonal):
    """x is Normal with the codes' covariance L in the principal directions and s^2 I: U L U' + s^2 I."""
    x, mean, axes, values, noise = pca
    ae = linear(x, mean, axes.T, axes.new_zeros(2), axes, noise, pa.posteriors.Delta(), pa.priors.Flat(2))
    kind = pa.priors.Normal(2, loc="per_dimension", scale="per_dimension") if diagonal else pa.priors.FullNormal()
    before = {name: value.clone() for name, value in ae.state_dict().items()}
    fitted = pa.fit_prior(ae, x, kind)
    exact = normal(mean, axes @ values.diag() @ axes.T + noise * torch.eye(6, dtype=DOUBLE)).log_prob(x[:20])
    for estimate in (
        pa.log_likelihood(fitted, x[:20], particles=400),
        pa.log_likelihood(fitted, x[:20], particles=400, proposal=pa.proposals.Laplace(steps=50)),
        pa.ais(fitted, x[:20], proposal=pa.proposals.prior, chains=10, temperatures=50),
    ):
        assert estimate.mean == pytest.approx(exact.mean().item(), abs=4 * estimate.mc_se + 1e-3), type(estimate)
    assert torch.equal(fitted.encode(x).mean, ae.encode(x).mean) and torch.equal(fitted.reconstruct(x), ae.reconstruct(x))
    assert all(torch.equal(ae.state_dict()[name], value) for name, value in before.items()) and not ae.prior.proper


@pytest.mark.parametrize("full", [False, True])
def test_a_mixture_is_scikit_learns(full):
    torch.manual_seed(0)
    z = torch.cat([torch.randn(300, 2) * torch.tensor([30.0, 1.0]), torch.randn(200, 2) * 0.1 + 40.0]).double()
    prior = pa.priors.GaussianMixture(2, components=2, full=full).double()
    assert prior.fit_to(z)
    theirs = GaussianMixture(2, covariance_type="full" if full else "diag", tol=1e-10, max_iter=500, random_state=0).fit(z.numpy())
    assert prior().log_prob(z).mean().item() == pytest.approx(theirs.score(z.numpy()), abs=1e-3)


@pytest.fixture(scope="module")
def narrow(grey):
    """A VAE whose codes are far from its prior."""
    vae = pa.recipes.vae(grey, latent_dim=2, hidden=32)
    pa.fit(vae, grey.train, elbo=pa.objectives.Tempered(0.05), epochs=15, seed=0, progress=False)
    return vae, pa.aggregate(vae, grey.train).marginal_kl


@pytest.mark.parametrize(
    "prior, nats",
    [
        (pa.priors.Normal(loc="learned", scale="learned"), 1.0),
        (pa.priors.Laplace(loc="per_dimension", scale="per_dimension"), 1.0),
        (pa.priors.Logistic(loc="per_dimension", scale="per_dimension"), 1.0),
        (pa.priors.FullNormal(), 0.6),
        (pa.priors.GaussianMixture(components=5, full=True), 0.1),
        (pa.priors.Flow(kind="maf", layers=2, hidden=16), 0.2),
        (pa.priors.Flow(kind="iaf", layers=2, hidden=16), 0.2),
    ],
    ids=["Normal", "Laplace", "Logistic", "FullNormal", "GaussianMixture", "maf", "iaf"],
)
def test_a_fitted_prior_is_near_the_aggregate_posterior(prior, nats, narrow, grey):
    vae, before = narrow
    fitted = pa.fit_prior(vae, grey.train, prior, epochs=15, batch_size=64)
    assert pa.aggregate(fitted, grey.train).marginal_kl < nats < 0.1 * before
    assert torch.equal(fitted.encode(grey.test.x).mean, vae.encode(grey.test.x).mean)


@pytest.mark.parametrize("values", ["learned", "per_dimension"])
def test_a_laplace_has_the_largest_likelihood(values):
    z = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.1]) + 2.0
    prior = pa.priors.Laplace(3, loc=values, scale=values)
    assert prior.fit_to(z)
    best = prior().log_prob(z).mean()
    with torch.no_grad():
        for p in prior.parameters():
            for step in (-0.02, 0.02):
                p.add_(step)
                assert prior().log_prob(z).mean() < best
                p.sub_(step)


def test_codes_of_sigmoid_units_keep_their_support_and_score_as_annealing_does(grey):
    ae = pa.recipes.contractive(grey, latent_dim=6)
    pa.fit(ae, grey.train, epochs=5, progress=False)
    fitted = pa.fit_prior(ae, grey.train, pa.priors.GaussianMixture(components=4, full=True))
    assert isinstance(fitted.prior, pa.priors.Constrained) and torch.equal(fitted.reconstruct(grey.test.x), ae.reconstruct(grey.test.x))
    z = fitted.sample_prior(50)
    assert z.min() >= 0 and z.max() <= 1
    x = grey.test.x[:5]
    assert pa.log_likelihood(fitted, x, particles=5).proposal == "auto"  # the guide, a point, would not do
    laplace = pa.proposals.Laplace(steps=50)
    by_proposal = [pa.log_likelihood(fitted, x, particles=500, proposal=each) for each in ("auto", laplace)]
    annealed = pa.ais(fitted, x, proposal=laplace, chains=10, temperatures=20)
    for estimate in by_proposal:
        assert estimate.mean == pytest.approx(annealed.mean, abs=4 * (estimate.mc_se**2 + annealed.mc_se**2) ** 0.5 + 0.01)


def test_the_first_layers_vae_gets_a_second_one_for_its_codes(grey):
    """Dai & Wipf 2019: its bound is about that of the best single Normal or better."""
    ae = pa.recipes.autoencoder(grey, latent_dim=3, hidden=64)
    pa.fit(ae, grey.train, epochs=10, progress=False)
    two = pa.fit_prior(ae, grey.train, pa.priors.Hierarchical(top=2, hidden=32), epochs=40)
    one = pa.fit_prior(ae, grey.train, pa.priors.FullNormal())
    assert isinstance(two.posterior.base, pa.posteriors.Delta) and torch.equal(two.encode(grey.test.x).mean, ae.encode(grey.test.x).mean)
    bounds = [pa.elbo_terms(each, grey.train, particles=20).elbo.mean().item() for each in (one, two)]
    assert bounds[1] > bounds[0] - 0.3 and two.sample(3).shape == (3, 64)


def test_a_prior_given_labels_and_validation(grey):
    ae = pa.recipes.conditional(grey, latent_dim=2, hidden=16)
    pa.fit(ae, grey.train, epochs=2, progress=False)
    fitted = pa.fit_prior(ae, grey.train, pa.priors.Conditioned(hidden=16), epochs=10, validation=pa.Validation(grey.test, patience=3))
    kl = [pa.elbo_terms(each, grey.test).kl.mean().item() for each in (ae, fitted)]
    assert kl[1] < kl[0] and fitted.prior.sample(2, ae._context(torch.tensor([1, 2]), 2)).shape == (2, 2)


def test_categories_get_their_frequencies(digits):
    ae = pa.Autoencoder(pa.priors.OneHot(5), pa.likelihoods.Bernoulli(64), pa.posteriors.OneHot(), pa.nets.MLP(8), pa.nets.MLP(8))
    fitted = pa.fit_prior(ae, digits.train, pa.priors.OneHot(logits="learned"))
    shares = ae.encode(digits.train.x).mean.mean(0)
    assert torch.allclose(fitted.prior().mean, shares, atol=5e-3)


REFUSED = {
    "nothing to fit": (lambda ae: pa.priors.Normal(), "prior with parameters to fit, and Normal has none"),
    "another shape": (lambda ae: pa.priors.FullNormal(5), "codes of shape \\(2,\\), got \\(5,\\)"),
    "no prior": (lambda ae: "GaussianMixture", "expected a prior such as"),
    "two levels, not z2": (lambda ae: pa.priors.Clusters(), "one level"),
    "improper": (lambda ae: pa.priors.Flat(), "has none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fitted(name):
    make, message = REFUSED[name]
    ae = pa.recipes.autoencoder(torch.rand(30, 4), latent_dim=2, hidden=4)
    with pytest.raises(ValueError, match="fit_prior: .*" + message):
        pa.fit_prior(ae, torch.rand(30, 4), make(ae))
