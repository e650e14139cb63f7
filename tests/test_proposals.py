"""Proposals, annealing and bounds: closed forms on linear-Gaussian models, isotropic and with a full covariance."""

import math

import pyro
import pytest
import torch
from conftest import linear_gaussian
from pyro import distributions as dist
from torch import nn

import pyroae as pa


def correlated(d=7, k=3, n=20):
    """A linear-Gaussian model whose posterior is no diagonal Normal, a guide that is one (too wide), and log p(x)."""
    w, b, noise = torch.randn(d, k, dtype=torch.float64) / k**0.5, torch.randn(d, dtype=torch.float64), 0.5
    eye = torch.eye(k, dtype=torch.float64)
    covariance = torch.linalg.inv(eye + w.T @ w / noise**2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(k, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + b, noise).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - b) @ w @ covariance / noise**2, 1.2 * covariance.diagonal().sqrt()).to_event(1))

    marginal = dist.MultivariateNormal(b, w @ w.T + noise**2 * torch.eye(d, dtype=torch.float64))
    x = marginal.sample((n,))
    return model, guide, x, marginal, covariance


PROPOSALS = {
    "Laplace": (pa.proposals.Laplace(steps=60), 1e-6),
    "full Normal": (pa.proposals.Optimised(steps=300, full=True), 1e-2),
}


@pytest.mark.parametrize("name", PROPOSALS)
def test_a_proposal_that_can_be_exact_is(name):
    proposal, within = PROPOSALS[name]
    model, guide, x, marginal, _ = correlated()
    score = pa.log_likelihood(model, x, guide=guide, proposal=proposal, particles=200)
    assert torch.allclose(score.values, marginal.log_prob(x), atol=within) and score.ess.min() > 190


def test_the_best_diagonal_normal_has_the_posterior_s_precisions():
    """KL(q || N(m, S)) is least for the diagonal q with variances 1 / diag(S^-1); then it is 1/2 (sum log diag(S^-1) + log det S)."""
    model, guide, x, marginal, covariance = correlated()
    terms = pa.elbo_terms(model, x, guide, particles=400, proposal=pa.proposals.Optimised(steps=200))
    gap = 0.5 * (torch.linalg.inv(covariance).diagonal().log().sum() + torch.logdet(covariance))
    assert (marginal.log_prob(x) - terms.elbo).mean().item() == pytest.approx(gap.item(), abs=0.03)


def test_the_prior_as_proposal():
    exact = linear_gaussian(noise=3.0)
    score = pa.log_likelihood(exact.ae, exact.x, particles=4000, proposal=pa.proposals.prior)
    assert ((score.values - exact.log_p).abs() < 5 * score.errors).all() and score.mc_se > 1e-4


@pytest.mark.parametrize("d, z", [(7, 3), (784, 50)])
def test_every_size_within_its_own_error(d, z):
    exact = linear_gaussian(d, z, widen=1.15)
    score = pa.log_likelihood(exact.ae, exact.x, particles=800, proposal="guide")
    assert abs(score.mean - exact.log_p.mean().item()) < 4 * score.mc_se + abs(score.bias)


def test_a_point_posterior_with_a_proper_prior_is_scored():
    exact = linear_gaussian()
    point = exact.ae.replace(posterior=pa.posteriors.Delta(), encoder=nn.Linear(7, 3).double())
    with pytest.raises(ValueError, match=r"Delta.*proposal=\"auto\""):
        pa.log_likelihood(point, exact.x, proposal="guide")
    score = pa.log_likelihood(point, exact.x, particles=100, proposal=pa.proposals.Laplace(steps=100))
    assert torch.allclose(score.values, exact.log_p, atol=1e-6)
    adapted = pa.log_likelihood(point, exact.x, particles=1000)
    assert ((adapted.values - exact.log_p).abs() < 5 * adapted.errors).all() and adapted.fitted.all()


def hierarchical(x):
    """log z2 ~ N(0, 1/2), three z1 given z2 in a plate of their own, x given z1."""
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.LogNormal(0.0, 0.5))
        with pyro.plate("inner", 3, dim=-2):
            z1 = pyro.sample("z1", dist.Normal(z2, 0.5))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x.T)


def hierarchical_truth(x):
    """z1 in closed form, log z2 on a grid."""
    grid = torch.linspace(-4, 4, 4001)
    covariance = 0.25 * torch.eye(3) + torch.eye(3)
    inner = dist.MultivariateNormal(grid.exp()[:, None, None] * torch.ones(3), covariance).log_prob(x)
    return ((inner + dist.Normal(0.0, 0.5).log_prob(grid)[:, None]).logsumexp(0) + (grid[1] - grid[0]).log()).double()


JUDGES = {
    "prior": lambda x, guide: pa.log_likelihood(hierarchical, x, guide, particles=20000, proposal="guide"),
    "Laplace": lambda x, guide: pa.log_likelihood(hierarchical, x, guide, particles=20000, proposal=pa.proposals.Laplace(steps=100)),
    "full Normal": lambda x, guide: pa.log_likelihood(hierarchical, x, guide, proposal=pa.proposals.Optimised(steps=150, full=True)),
    "annealed": lambda x, guide: pa.ais(hierarchical, x, guide, chains=40, temperatures=40),
    "annealed from Laplace": lambda x, guide: pa.ais(
        hierarchical, x, guide, proposal=pa.proposals.Laplace(steps=100), chains=40, temperatures=20
    ),
}


@pytest.mark.parametrize("name", JUDGES)
def test_several_sites_inner_plates_and_constrained_supports(name):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.LogNormal(0.0, 0.5))
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("z1", dist.Normal(z2, 0.5))

    x = torch.tensor([[1.0, 0.5, 2.0], [0.0, 0.3, -0.2], [3.0, 2.5, 2.0]])
    score = JUDGES[name](x, guide)
    assert ((score.values - hierarchical_truth(x)).abs() < 5 * score.errors + 0.02).all(), (score.values, hierarchical_truth(x))


@pytest.mark.parametrize("base", [None, pa.proposals.prior], ids=["guide", "prior"])
def test_annealing_is_right_within_its_own_error(base):
    model, guide, x, marginal, _ = correlated(n=30)
    score = pa.ais(model, x, guide, proposal=base, chains=30, temperatures=60)
    assert abs(score.mean - marginal.log_prob(x).mean().item()) < 4 * score.mc_se + 2 * abs(score.bias)
    assert 0.5 < score.acceptance.min() and "60 temperatures" in str(score)


def test_bounds_from_both_sides_bracket_the_truth():
    model, guide, x, marginal, _ = correlated(n=60)
    few, many = (pa.bdmc(model, x, guide, proposal=pa.proposals.prior, chains=4, temperatures=t) for t in (10, 60))
    for found in (few, many):
        truth = marginal.log_prob(found.x).mean().item()
        assert found.lower.mean - 3 * found.lower.mc_se < truth < found.upper.mean + 3 * found.gap_se
        assert "a lower bound" in str(found.lower) and "an upper bound" in str(found.upper) and math.isnan(found.upper.mc_se)
    assert few.gap > 0.1 and many.gap < 0.5 * few.gap


def test_a_bracket_whose_ends_cross_says_so():
    exact = linear_gaussian()
    found = [pa.bdmc(exact.ae, exact.x[:5], chains=4, temperatures=4, seed=seed) for seed in range(8)]
    assert all(("Monte-Carlo error" in str(each)) == (each.gap < 0) and "<=" not in str(each) for each in found)


def test_backward_chains_alone_are_right_too():
    model, guide, x, marginal, _ = correlated(n=30)
    found = pa.bdmc(model, x, guide, chains=30, temperatures=60)
    assert abs(found.upper.mean - marginal.log_prob(found.x).mean().item()) < 0.1


def folded(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
        pyro.sample("x", dist.Normal(z.abs(), 0.2), obs=x)


def one_side(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.3))


def test_the_gaps_error_is_its_spread_over_the_seeds():
    """The posterior has two modes, and all chains down start in the one that an example was made by."""
    found = [pa.bdmc(folded, torch.zeros(40), one_side, chains=8, temperatures=10, seed=seed) for seed in range(12)]
    spread, stated = torch.tensor([each.gap for each in found]).std(), torch.tensor([each.gap_se for each in found]).mean()
    assert 0.5 < spread / stated < 2.0


def discrete(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))


def test_discrete_latents_are_drawn_by_importance_sampling_and_refused_elsewhere():
    x = torch.linspace(-2, 3, 7)
    truth = (0.7 * dist.Normal(0.0, 1.0).log_prob(x).exp() + 0.3 * dist.Normal(1.0, 1.0).log_prob(x).exp()).log()
    score = pa.log_likelihood(discrete, x, discrete_guide, particles=20000, proposal="guide")
    assert ((score.values - truth).abs() < 5 * score.errors).all()
    for judge in (pa.ais, pa.decompose, pa.aggregate, pa.sbc):
        with pytest.raises(ValueError, match="'z' is discrete"):
            judge(discrete, x, discrete_guide)


def test_an_enumerated_guide_is_scored():
    x = torch.rand(5, 64).round()
    ae = pa.Autoencoder(pa.priors.OneHot(4), pa.likelihoods.Bernoulli(64), pa.posteriors.OneHot(), pa.nets.MLP(8), pa.nets.MLP(8))
    logits = torch.stack([ae.decode(torch.eye(4)).log_prob(row) for row in x])
    truth = logits.logsumexp(1) - torch.tensor(4.0).log()
    score = pa.log_likelihood(ae, x, particles=2000, proposal="guide")
    assert ((score.values - truth).abs() < 5 * score.errors + 1e-4).all()


def test_other_readable_refusals():
    x = torch.rand(5, 64).round()
    parts = pa.likelihoods.Bernoulli(64), pa.posteriors.Delta(), pa.nets.MLP(8), pa.nets.MLP(8)
    flat = pa.Autoencoder(pa.priors.Flat(4), *parts)
    for judge in (lambda: pa.log_likelihood(flat, x, proposal=pa.proposals.Laplace()), lambda: pa.ais(flat, x)):
        with pytest.raises(ValueError, match="improper"):
            judge()
    point = pa.Autoencoder(pa.priors.Normal(4), *parts)
    with pytest.raises(ValueError, match="Delta"):
        pa.ais(point, x)
    round_ = point.replace(prior=pa.priors.Sphere(4), posterior=pa.posteriors.ProjectedNormal())
    with pytest.raises(ValueError, match="no map to the real line"):
        pa.ais(round_, x)


@pytest.mark.slow
def test_nuts_finds_the_same_posterior():
    """The moments of p(z|x) by Laplace importance resampling and by Pyro's NUTS, for a decoder that is not linear."""
    from pyro.infer import MCMC, NUTS

    pytest.importorskip("arviz", reason="needs the extra 'arviz'")
    torch.manual_seed(1)
    w = torch.randn(2, 6)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=(z.sin() + z) @ w).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = (torch.rand(3, 6) < 0.5).float()
    mcmc = MCMC(NUTS(model), num_samples=3000, warmup_steps=300, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"]
    from pyroae.evaluation.export import to_arviz

    ours = torch.as_tensor(to_arviz(model, x, guide, draws=3000, particles=20000, proposal=pa.proposals.Laplace()).posterior["z"].values[0])
    assert torch.allclose(ours.mean(0), z.mean(0), atol=0.1) and torch.allclose(ours.std(0), z.std(0), atol=0.1)
