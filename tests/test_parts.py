"""One table of parts, each put through every test of its kind."""

import json
import math

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from conftest import small_vae
from pyro import distributions as dist
from torch import nn
from torch.distributions import constraints

import pyroae as pa
from pyroae.model import networks
from pyroae.model.building import Context
from pyroae.model.distributions import NormalMixture
from pyroae.registry import members, name_of
from pyroae.structure import describe, rebuild

# part -> (constructor, scipy's distribution of one entry where it has one)
PRIORS = {
    "Normal": (lambda: pa.priors.Normal(3, loc=0.5, scale=2.0), scipy.stats.norm(0.5, 2)),
    "Normal, learned": (lambda: pa.priors.Normal(3, loc="learned", scale="per_dimension"), scipy.stats.norm(0, 1)),
    "Laplace": (lambda: pa.priors.Laplace(3, scale=0.3), scipy.stats.laplace(0, 0.3)),
    "SoftLaplace": (lambda: pa.priors.SoftLaplace(3), scipy.stats.hypsecant()),
    "StudentT": (lambda: pa.priors.StudentT(3, df=4.0, scale=0.5), scipy.stats.t(4, 0, 0.5)),
    "Logistic": (lambda: pa.priors.Logistic(3, scale=0.5), scipy.stats.logistic(0, 0.5)),
    "from Pyro": (lambda: pa.priors.FromPyro("Gumbel", 3, loc=0.5, scale="learned"), scipy.stats.gumbel_r(0.5, 1)),
    "FromDistribution, a batch": (lambda: pa.priors.FromDistribution(dist.StudentT(3.0, torch.zeros(3), 2.0)), scipy.stats.t(3, 0, 2)),
    "FromDistribution, an event": (
        lambda: pa.priors.FromDistribution(dist.Normal(0.0, 1.0).expand([3]).to_event(1)),
        scipy.stats.norm(0, 1),
    ),
}

SHIFT, FACTOR = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([3.0, 1.0, 0.5])


SHARES = torch.tensor([0.5, 0.3, 0.2])


def library_size(of):
    likelihood = pa.likelihoods.LibrarySize(of)
    likelihood.total.copy_(torch.tensor([2.0, 0.5]))
    likelihood.log_shares.copy_(SHARES.log())
    likelihood.is_measured.fill_(True)
    return likelihood


def standardised(of):
    """Mean and scale as if they had been measured."""
    part = pa.likelihoods.Standardised(of)
    part.shift.copy_(SHIFT), part.factor.copy_(FACTOR), part.is_measured.fill_(True)
    return part


# part -> (constructor, numbers of the decoder for one x, the same density by hand given the decoder's numbers)
LIKELIHOODS = {
    "Bernoulli": (lambda: pa.likelihoods.Bernoulli(3), 3, lambda h, x: scipy.stats.bernoulli(h.sigmoid()).logpmf(x)),
    "ContinuousBernoulli": (lambda: pa.likelihoods.ContinuousBernoulli(3), 3, None),
    "Normal, fixed": (lambda: pa.likelihoods.Normal(3, scale=0.5), 3, lambda h, x: scipy.stats.norm(h, 0.5).logpdf(x)),
    "Normal, learned": (lambda: pa.likelihoods.Normal(3), 3, lambda h, x: scipy.stats.norm(h, 1).logpdf(x)),
    "Normal, per dimension": (lambda: pa.likelihoods.Normal(3, scale="per_dimension"), 3, lambda h, x: scipy.stats.norm(h, 1).logpdf(x)),
    "Normal, from the decoder": (
        lambda: pa.likelihoods.Normal(3, scale=None),
        6,
        lambda h, x: scipy.stats.norm(h[..., :3], h[..., 3:].exp()).logpdf(x),
    ),
    "OptimalNormal": (lambda: pa.likelihoods.OptimalNormal(3).eval(), 3, lambda h, x: scipy.stats.norm(h, 1).logpdf(x)),
    "Laplace": (lambda: pa.likelihoods.Laplace(3, scale=0.5), 3, lambda h, x: scipy.stats.laplace(h, 0.5).logpdf(x)),
    "StudentT": (lambda: pa.likelihoods.StudentT(3, df=4.0, scale=0.5), 3, lambda h, x: scipy.stats.t(4, h, 0.5).logpdf(x)),
    "LogNormal": (lambda: pa.likelihoods.LogNormal(3), 3, lambda h, x: scipy.stats.lognorm(1, scale=h.exp()).logpdf(x)),
    "Gamma": (lambda: pa.likelihoods.Gamma(3), 6, lambda h, x: scipy.stats.gamma(h[..., :3].exp(), scale=(-h[..., 3:]).exp()).logpdf(x)),
    "Beta": (lambda: pa.likelihoods.Beta(3), 6, lambda h, x: scipy.stats.beta(h[..., :3].exp(), h[..., 3:].exp()).logpdf(x)),
    "Poisson": (lambda: pa.likelihoods.Poisson(3), 3, lambda h, x: scipy.stats.poisson(h.exp()).logpmf(x)),
    "NegativeBinomial": (
        lambda: pa.likelihoods.NegativeBinomial(3, total_count=5.0),
        3,
        lambda h, x: scipy.stats.nbinom(5, 1 - h.sigmoid()).logpmf(x),
    ),
    "NegativeBinomial, learned": (
        lambda: pa.likelihoods.NegativeBinomial(3),
        3,
        lambda h, x: scipy.stats.geom(1 - h.sigmoid(), -1).logpmf(x),
    ),
    "ZeroInflatedNegativeBinomial": (
        lambda: pa.likelihoods.ZeroInflatedNegativeBinomial(3),
        6,
        lambda h, x: zero_inflated(h[..., 3:].sigmoid(), scipy.stats.geom(1 - h[..., :3].sigmoid(), -1), x),
    ),
    "Categorical": (lambda: pa.likelihoods.Categorical(3, categories=4), 12, lambda h, x: picked(h.reshape(-1, 4, 3).mT, x.long())),
    "GreyLevels": (lambda: pa.likelihoods.GreyLevels(3, levels=5), 15, lambda h, x: picked(h.reshape(-1, 5, 3).mT, (4 * x).round().long())),
    "DiscretizedLogistic": (
        lambda: pa.likelihoods.DiscretizedLogistic(3, scale=0.3, levels=9),
        3,
        lambda h, x: level_mass(scipy.stats.logistic(h, 0.3), x, 9),
    ),
    "LogisticMixture": (lambda: pa.likelihoods.LogisticMixture(3, components=2, levels=9), 18, None),
    "Product": (
        lambda: pa.likelihoods.Product({"a": pa.likelihoods.Normal(2), "b": pa.likelihoods.Poisson(1)}),
        3,
        lambda h, x: np.hstack([scipy.stats.norm(h[:, :2]).logpdf(x[:, :2]), scipy.stats.poisson(h[:, 2:].exp()).logpmf(x[:, 2:])]),
    ),
    "Standardised": (
        lambda: standardised(pa.likelihoods.Normal(3, scale=0.5)),
        3,
        lambda h, x: scipy.stats.norm(SHIFT + FACTOR * h, FACTOR * 0.5).logpdf(x),
    ),
    "Standardised, positive": (
        lambda: standardised(pa.likelihoods.LogNormal(3, scale=0.5)),
        3,
        lambda h, x: scipy.stats.lognorm(FACTOR * 0.5, scale=(SHIFT + FACTOR * h).exp()).logpdf(x),
    ),
    "Standardised, counts": (
        lambda: standardised(pa.likelihoods.Poisson(3)),
        3,
        lambda h, x: scipy.stats.poisson(FACTOR * h.exp()).logpmf(x),
    ),
    "LibrarySize": (
        lambda: library_size(pa.likelihoods.Poisson(3)),
        4,
        lambda h, x: scipy.stats.poisson((2 + 0.5 * h[:, :1]).exp() * (SHARES.log() + h[:, 1:]).softmax(-1)).logpmf(x),
    ),
    "from Pyro": (
        lambda: pa.likelihoods.FromPyro("Binomial", 3, total_count=16),
        3,
        lambda h, x: scipy.stats.binom(16, h.sigmoid()).logpmf(x),
    ),
}


def zero_inflated(gate, counts, x):
    gate, x = gate.numpy(), x.numpy()
    return np.log(gate * (x == 0) + (1 - gate) * counts.pmf(x))


def picked(logits, index):
    return logits.log_softmax(-1).gather(-1, index[..., None])[..., 0]


def level_mass(logistic, x, levels):
    half = 0.5 / (levels - 1)
    below = np.where(x < half, 0.0, logistic.cdf(x - half))
    above = np.where(x > 1 - half, 1.0, logistic.cdf(x + half))
    return np.log(above - below)


# part -> (constructor, numbers of the encoder for one z of 3 numbers)
POSTERIORS = {
    "Normal": (lambda: pa.posteriors.Normal(3), 6),
    "Normal, fixed scale": (lambda: pa.posteriors.Normal(3, scale=0.1), 3),
    "Delta": (lambda: pa.posteriors.Delta(3), 3),
    "from Pyro": (lambda: pa.posteriors.FromPyro("Laplace", 3), 6),
    "Laplace": (lambda: pa.posteriors.Laplace(3), 6),
    "StudentT": (lambda: pa.posteriors.StudentT(3), 6),
    "FullNormal": (lambda: pa.posteriors.FullNormal(3), 3 + 9),
    "LowRankNormal": (lambda: pa.posteriors.LowRankNormal(3, rank=2), 3 + 6 + 3),
    "RelaxedOneHot": (lambda: pa.posteriors.RelaxedOneHot(3), 3),
    "RelaxedBernoulli": (lambda: pa.posteriors.RelaxedBernoulli(3), 3),
    "TopK": (lambda: pa.posteriors.TopK(3, k=2), 3),
    "BatchTopK": (lambda: pa.posteriors.BatchTopK(3, k=2), 3),
    "JumpReLU": (lambda: pa.posteriors.JumpReLU(3, threshold=0.2, bandwidth=4.0), 3),
    "Gated": (lambda: pa.posteriors.Gated(3), 3),
    "Flow": (lambda: pa.posteriors.Flow(3), 6),
    "Flow on StudentT": (lambda: pa.posteriors.Flow(3, base=pa.posteriors.StudentT()), 6),
}

CORRUPTIONS = {
    "Masking": lambda: pa.corruption.Masking(0.3),
    "BernoulliMask": lambda: pa.corruption.BernoulliMask(0.3),
    "Gaussian": lambda: pa.corruption.Gaussian(0.2),
    "SaltPepper": lambda: pa.corruption.SaltPepper(0.3),
}

OTHERS = {
    "MLP": lambda: pa.nets.MLP([300, 150], activation="Tanh", dropout=0.1),
    "Penalised": lambda: pa.Penalised(pa.penalties.KLSparsity(0.3, target=0.2)),
    "IWAE": lambda: pa.objectives.IWAE(5, gradient="dreg"),
    "CIWAE": lambda: pa.objectives.CIWAE(5, beta=0.2),
    "Tempered": lambda: pa.objectives.Tempered(pa.schedules.Linear(30, end=4.0)),
    "FreeBits": lambda: pa.objectives.FreeBits(0.5),
    "Capacity": lambda: pa.objectives.Capacity(pa.schedules.Linear(10, end=5.0), weight=30.0),
    "Renyi": lambda: pa.objectives.Renyi(-0.5, particles=5),
    "PIWAE": lambda: pa.objectives.PIWAE(3, groups=2),
    "schedule Linear": lambda: pa.schedules.Linear(30, end=4.0),
    "schedule Cyclical": lambda: pa.schedules.Cyclical(30, rise=0.3),
    "L1": lambda: pa.penalties.L1(0.2),
    "L0": lambda: pa.penalties.L0(0.2),
    "GatedSparsity": lambda: pa.penalties.GatedSparsity(0.2),
    "DeadUnits": lambda: pa.penalties.DeadUnits(0.2, k=5),
    "TotalCorrelation": lambda: pa.penalties.TotalCorrelation(1437, weight=3.0),
    "MMD": lambda: pa.penalties.MMD(3.0),
    "Linear": lambda: pa.nets.Linear(),
    "GatedMLP": lambda: pa.nets.GatedMLP([30, 20]),
    "Residual": lambda: pa.nets.Residual(30, blocks=3),
    "Dictionary": lambda: pa.nets.Dictionary(),
    "Tied": lambda: pa.nets.Tied("Sigmoid"),
    "SpectralNorm": lambda: pa.nets.SpectralNorm(pa.nets.MLP([8])),
    "DecoderJacobian": lambda: pa.penalties.DecoderJacobian(0.2, probes=3),
    "MultiScaleSSIM": lambda: pa.penalties.MultiScaleSSIM(30.0, image=[1, 8, 8]),
    "Emphasis": lambda: pa.penalties.Emphasis("label", 3.0),
    "Identity": lambda: pa.nets.Identity(),
    "ProductOfExperts": lambda: pa.posteriors.ProductOfExperts(3, hidden=[5]),
    "MixtureOfExperts": lambda: pa.posteriors.MixtureOfExperts(3, activation="Tanh"),
    "Modalities": lambda: pa.corruption.Modalities(0.4),
    "DecoderL2": lambda: pa.penalties.DecoderL2(0.2),
    "Conv": lambda: pa.nets.Conv([8, 16], image=(3, 8, 8)),
    "Deconv": lambda: pa.nets.Deconv([16, 8]),
    "Spatial": lambda: pa.nets.Spatial([16, 8], scaling=0.2),
    "Missing": lambda: pa.likelihoods.Missing(pa.likelihoods.Normal(3), mask=True),
    "ClassAndStyle": lambda: pa.priors.ClassAndStyle(3, classes=4),
    "Codes": lambda: pa.priors.Codes((4, 2), learned=True),
    "CodeSequence": lambda: pa.priors.CodeSequence((4, 2), hidden=8),
    "Hamiltonian": lambda: pa.posteriors.Hamiltonian(3, base=pa.posteriors.Laplace(), steps=2),
    "WrappedNormal prior": lambda: pa.priors.WrappedNormal(3, scale="learned", curvature=0.5),
    "WrappedNormal posterior": lambda: pa.posteriors.WrappedNormal(3),
    "VectorQuantised": lambda: pa.posteriors.VectorQuantised((4, 2), codes=8, decay=0.9, restart=0.02),
    "FiniteScalar": lambda: pa.posteriors.FiniteScalar((4, 2), levels=[5, 4]),
    "Commitment": lambda: pa.penalties.Commitment(0.3),
    "Conditioned": lambda: pa.priors.Conditioned(3, "Laplace", hidden=[5, 5]),
    "Clusters posterior": lambda: pa.posteriors.Clusters(3, features=5, top=2),
    "Clusters prior": lambda: pa.priors.Clusters(3, clusters=4),
    "Labels": lambda: pa.conditions.Labels(3),
    "PartialLabels": lambda: pa.conditions.PartialLabels(3),
    "Covariates": lambda: pa.conditions.Covariates(3),
    "Flat": lambda: pa.priors.Flat(3, support="unit_interval"),
    "VampPrior": lambda: pa.priors.VampPrior(3, components=7),
    "Hierarchical prior": lambda: pa.priors.Hierarchical(3, top=2, hidden=[5, 5]),
    "Hierarchical prior, skip": lambda: pa.priors.Hierarchical(3, top=2, skip=True),
    "TopDown": lambda: pa.posteriors.TopDown(3, features=4, top=2),
    "Hierarchical posterior": lambda: pa.posteriors.Hierarchical(3, hidden=[5, 5]),
}

DISCRETE = {
    "prior OneHot": lambda: pa.priors.OneHot(3, logits="learned"),
    "prior RelaxedOneHot": lambda: pa.priors.RelaxedOneHot(3, temperature=0.3),
    "prior RelaxedBernoulli": lambda: pa.priors.RelaxedBernoulli(3, temperature=0.3),
    "prior Bernoulli": lambda: pa.priors.Bernoulli(3, logits="per_dimension"),
    "posterior OneHot": lambda: pa.posteriors.OneHot(3),
    "posterior OneHotStraightThrough": lambda: pa.posteriors.OneHotStraightThrough(3),
    "posterior BernoulliStraightThrough": lambda: pa.posteriors.BernoulliStraightThrough(3),
    "posterior OneHotGumbel": lambda: pa.posteriors.OneHotGumbel(3),
    "posterior BernoulliGumbel": lambda: pa.posteriors.BernoulliGumbel(3),
    "posterior Flow, planar": lambda: pa.posteriors.Flow(3, kind="planar"),
    "posterior PowerSpherical": lambda: pa.posteriors.PowerSpherical(5),
    "posterior ProjectedNormal": lambda: pa.posteriors.ProjectedNormal(3),
    "prior Sphere": lambda: pa.priors.Sphere(3),
}

LEARNED_PRIORS = {
    "Uniform": lambda: pa.priors.Uniform(2, low=-2.0, high=1.0),
    "SpikeSlab": lambda: pa.priors.SpikeSlab(2, share=0.4, slab=1.5, spike=0.2),
    "GaussianMixture": lambda: pa.priors.GaussianMixture(2, components=4),
    "GaussianMixture, full": lambda: pa.priors.GaussianMixture(2, components=4, full=True),
    "FullNormal": lambda: pa.priors.FullNormal(2),
    "Flow, affine": lambda: pa.priors.Flow(2, kind="affine", layers=2, hidden=8),
    "Flow, maf": lambda: pa.priors.Flow(2, kind="maf", layers=2, hidden=8),
    "Flow, iaf": lambda: pa.priors.Flow(2, kind="iaf", layers=2, hidden=8),
}

MODULES = {
    **{f"prior {name}": make for name, make in LEARNED_PRIORS.items() if name != "Uniform"},
    "prior Constrained": lambda: pa.priors.Constrained(pa.priors.Normal(3, loc="learned", scale="learned"), "positive"),
    "prior Flow, spline": lambda: pa.priors.Flow(3, layers=2, hidden=8),
    **{f"prior {name}": row[0] for name, row in PRIORS.items()},
    **{f"likelihood {name}": row[0] for name, row in LIKELIHOODS.items()},
    **{f"posterior {name}": row[0] for name, row in POSTERIORS.items()},
}
ALL = {
    **MODULES,
    **DISCRETE,
    "Uniform": LEARNED_PRIORS["Uniform"],
    **{f"corruption {name}": make for name, make in CORRUPTIONS.items()},
    **OTHERS,
}


def test_the_tables_cover_every_part():
    covered = {name_of(type(make())) for make in ALL.values()}
    elsewhere = ("KLSparsity", "L2", "Contractive", "SigmoidContractive", "Classification")  # tests/test_objectives.py, test_penalties.py
    covered |= {f"penalties.{name}" for name in elsewhere}
    kinds = ["priors", "likelihoods", "posteriors", "nets", "schedules", "conditions", "corruption", "penalties", "objectives"]
    ours = {name_of(cls) for kind in kinds for cls in members(kind).values() if cls.__module__.startswith("pyroae")}
    assert ours == covered


@pytest.mark.parametrize("name", PRIORS)
def test_prior_density_is_scipys(name):
    make, reference = PRIORS[name]
    z = torch.randn(20, 3)
    p = make()()
    assert p.batch_shape == () and p.event_shape == (3,)
    assert torch.allclose(p.log_prob(z).double(), torch.tensor(reference.logpdf(z).sum(1)), atol=1e-4)


@pytest.mark.parametrize("name", PRIORS)
def test_prior_samples_have_the_densitys_quantiles(name):
    make, reference = PRIORS[name]
    z = make()().sample((4000,))
    assert z.shape == (4000, 3)
    assert scipy.stats.kstest(z.flatten().detach().numpy(), reference.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", LEARNED_PRIORS)
def test_a_prior_integrates_to_one_and_its_samples_follow_it(name):
    torch.manual_seed(3)
    p = LEARNED_PRIORS[name]().double()()
    axis = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad(), pyro.validation_enabled(False):
        mass = p.log_prob(z).exp() if name != "Uniform" else p.log_prob(z).exp() * p.support.check(z)
        drawn = p.sample((20000,))
    cell = (axis[1] - axis[0]) ** 2
    assert (mass.sum() * cell).item() == pytest.approx(1.0, abs=2e-2 if name == "Uniform" else 2e-3)
    assert torch.allclose((z * mass[:, None]).sum(0) * cell, drawn.mean(0), atol=0.07)
    inside = ((z**2).sum(1) < 1).double()
    assert (inside * mass).sum().item() * cell.item() == pytest.approx(((drawn**2).sum(1) < 1).double().mean().item(), abs=0.02)


@pytest.mark.parametrize(
    "support, exact",
    [
        ("positive", lambda z: scipy.stats.lognorm(2.0).logpdf(z)),
        ("unit_interval", lambda z: scipy.stats.norm(0, 2).logpdf(scipy.special.logit(z)) - np.log(z - z**2)),
    ],
)
def test_a_constrained_priors_density_has_its_jacobian(support, exact):
    p = pa.priors.Constrained(pa.priors.Normal(3, scale=2.0), support)()
    z = p.sample((20,))
    assert torch.allclose(p.log_prob(z).double(), torch.tensor(exact(z.double().numpy()).sum(1)), atol=1e-3)


@pytest.mark.parametrize("prior", [pa.priors.RelaxedBernoulli(1, 0.7, 0.4), pa.priors.RelaxedOneHot(2, 0.7, [0.4, 0.0])])
def test_a_relaxed_prior_integrates_to_one_and_its_samples_follow_it(prior):
    """Both are the same density of one number: of two categories the first."""
    p, u = prior.double()(), torch.linspace(0, 1, 200001, dtype=torch.float64)[1:-1, None]
    mass = p.log_prob(u if len(p.event_shape) and p.event_shape[0] == 1 else torch.cat([u, 1 - u], -1)).exp()
    assert torch.trapezoid(mass, u[:, 0]).item() == pytest.approx(1.0, abs=5e-3)  # its ends are steep
    drawn, inside = p.sample((20000,))[:, 0], u[:, 0] < 0.3
    assert torch.trapezoid(mass[inside], u[inside, 0]).item() == pytest.approx((drawn < 0.3).double().mean().item(), abs=0.02)


@pytest.mark.parametrize("posterior", [pa.posteriors.OneHotGumbel(3), pa.posteriors.BernoulliGumbel(3)])
def test_a_straight_through_draw_is_discrete_of_the_right_probabilities_and_passes_a_gradient(posterior):
    h = torch.tensor([0.7, -1.0, 0.2], requires_grad=True)
    q = posterior(h)
    z = q.rsample((20000,))
    assert set(z.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(z.mean(0), q.mean, atol=0.02) and torch.equal(q.log_prob(z.detach().round()).isfinite(), torch.ones(20000).bool())
    z[:, 0].sum().backward()
    assert h.grad[0] > 0


@pytest.mark.parametrize("kind", ["spline", "affine", "maf", "iaf"])
def test_a_flows_density_is_its_bases_times_the_jacobian(kind):
    prior = pa.priors.Flow(3, kind=kind, layers=3, hidden=8).double()
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.3 * torch.randn_like(p))
        prior.shift.fill_(0.5), prior.factor.copy_(torch.tensor([2.0, 1.0, 0.3]))
    flow, x = prior(), 1.5 * torch.randn(20, 3, dtype=torch.float64)

    def push(one):
        for step in flow.transforms:
            one = step(one)
        return one

    z = push(x).detach().clone()
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda one: push(one[None])[0], row) for row in x])
    assert torch.allclose(prior().log_prob(z), flow.base_dist.log_prob(x) - torch.linalg.slogdet(jacobians)[1], atol=1e-6)


def test_flat_is_improper():
    prior = pa.priors.Flat(3)
    assert not prior.proper and prior().log_prob(torch.randn(5, 3)).tolist() == [0.0] * 5


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_density_is_scipys(name):
    make, size, reference = LIKELIHOODS[name]
    likelihood, h = make(), torch.randn(20, size)
    p = likelihood(h)
    assert likelihood.size == size and p.batch_shape == (20,) and p.event_shape == (3,)
    x = p.sample()
    likelihood.check(x)
    if reference is not None:
        assert torch.allclose(p.log_prob(x).double(), torch.as_tensor(reference(h, x)).double().sum(-1), atol=1e-3)


@pytest.mark.parametrize("logit", [0.0, 0.01, -0.09, 0.11, 3.0, -40.0])
def test_continuous_bernoulli_integrates_to_one(logit):
    x = torch.linspace(0, 1, 200001, dtype=torch.float64)
    p = pa.likelihoods.ContinuousBernoulli(1).double()(torch.tensor([logit], dtype=torch.float64))
    assert torch.trapezoid(p.log_prob(x[:, None]).exp(), x).item() == pytest.approx(1.0, abs=1e-6)


GREY = {
    "GreyLevels": pa.likelihoods.GreyLevels(1),
    "DiscretizedLogistic": pa.likelihoods.DiscretizedLogistic(1),
    "LogisticMixture": pa.likelihoods.LogisticMixture(1),
}


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_a_mixture_of_normals_by_products_is_the_mixture(shape):
    loc, scale, logits = torch.randn(7, *shape), (torch.randn(7, *shape) - 2).exp(), torch.randn(7)
    make = [torch.distributions.MixtureSameFamily, NormalMixture]
    exact, fast = (
        cls(dist.Categorical(logits=t(logits)), dist.Normal(t(loc), t(scale)).to_event(len(shape)))
        for cls, t in zip(make, (torch.Tensor.double, lambda p: p))
    )
    z = fast.expand([3]).sample((5,))
    assert z.shape == (5, 3, *shape) and fast.expand([2, 3]).log_prob(z[0]).shape == (2, 3)
    for q in (fast, fast.expand([3]), fast.expand([3]).expand([5, 3])):
        assert torch.allclose(q.log_prob(z).double(), exact.log_prob(z.double()), atol=1e-5)
    point = z[0, 0].clone().requires_grad_()
    slope = [torch.autograd.grad(q.log_prob(point.to(t)), point)[0] for q, t in ((exact, torch.float64), (fast, torch.float32))]
    assert torch.allclose(*slope, rtol=1e-4, atol=1e-4)


def test_a_mixture_of_narrow_normals_needs_its_float64(monkeypatch):
    loc, scale = torch.randn(50, 20), torch.full((50, 20), 0.01)
    z = loc + scale * torch.randn(50, 20)
    normals = dist.Normal(loc, scale)
    mixture = NormalMixture(dist.Categorical(logits=torch.zeros(50)), normals.to_event(1))
    exact = (normals.log_prob(z[:, None]).double().sum(-1) - math.log(50)).logsumexp(-1)
    assert (mixture.log_prob(z) - exact).abs().max() < 1e-4
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: tensor)
    assert (mixture.log_prob(z) - exact).abs().max() > 1e-2


@pytest.mark.parametrize("name", GREY)
def test_grey_levels_have_probabilities_that_sum_to_one_and_the_right_mean(name):
    likelihood, levels = GREY[name].double(), torch.linspace(0, 1, 256, dtype=torch.float64)[:, None]
    for h in (torch.randn(likelihood.size), 8 * torch.randn(likelihood.size), torch.full((likelihood.size,), -9.0)):
        p = likelihood(h.double())
        mass = p.log_prob(levels).exp()
        assert mass.sum().item() == pytest.approx(1.0, abs=1e-9)
        assert p.mean.item() == pytest.approx((mass * levels[:, 0]).sum().item(), abs=1e-9)
    x = p.sample((4000,))
    assert x.mean().item() == pytest.approx(p.mean.item(), abs=0.02)


def test_a_discretized_logistic_loses_nothing_far_from_its_mean():
    p = pa.likelihoods.DiscretizedLogistic(1, scale=0.001)(torch.tensor([0.0]))
    assert p.log_prob(torch.tensor([0.5])).item() == pytest.approx(-(0.5 - 0.5 / 255) / 0.001, rel=1e-3)


def test_a_table_of_mixed_columns_is_refused_by_column_and_trained():
    table = pa.likelihoods.Product(
        {"age": pa.likelihoods.Normal(1), "visits": pa.likelihoods.Poisson(1), "town": pa.likelihoods.Categorical(1, categories=3)}
    )
    x = torch.stack([torch.randn(200), torch.poisson(torch.full((200,), 3.0)), torch.randint(3, (200,)).float()], 1)
    ae = pa.Autoencoder(pa.priors.Normal(2), table, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    losses = pa.fit(ae, x, epochs=10, lr=1e-2, batch_size=50, progress=False).loss
    assert losses[-1] < losses[0] and set(ae.reconstruct(x)[:, 2].tolist()) <= {0.0, 1.0, 2.0}
    with pytest.raises(ValueError, match="column 'visits'.*a whole number, not negative.*from -1"):
        table.check(torch.tensor([[0.3, -1.0, 2.0]]))


def test_columns_of_a_table_may_stand_in_another_order():
    parts = {"a, c": pa.likelihoods.Normal(2), "b": pa.likelihoods.Poisson(1)}
    table, sorted_table = pa.likelihoods.Product(parts, order=[0, 2, 1]), pa.likelihoods.Product(parts)
    h, x = torch.randn(7, table.size), torch.tensor([[0.5, 3.0, -1.0]]).expand(7, 3)
    p, q = table(h), sorted_table(h)
    assert torch.equal(p.log_prob(x), q.log_prob(x[:, [0, 2, 1]]))
    assert torch.equal(p.mean, q.mean[:, [0, 2, 1]]) and torch.equal(table.mean_or_mode(p), sorted_table.mean_or_mode(q)[:, [0, 2, 1]])
    torch.manual_seed(0)
    drawn = p.expand((3, 7)).sample()
    torch.manual_seed(0)
    assert torch.equal(drawn, q.expand((3, 7)).sample()[..., [0, 2, 1]])
    assert p.support.check(x).all() and not p.support.check(x + 0.5).any()
    with pytest.raises(ValueError, match="expected order as the places 0 to 2"):
        pa.likelihoods.Product(parts, order=[0, 1, 1])


def test_the_encoder_is_given_counts_on_a_scale_of_its_own():
    table = pa.likelihoods.Product({"a": pa.likelihoods.Normal(1), "n": pa.likelihoods.Missing(pa.likelihoods.Poisson(2), mask=False)})
    seen = []
    ae = pa.Autoencoder(pa.priors.Normal(2), table, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    ae.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ae.encode(torch.tensor([[-7.0, torch.nan, 1000.0]]))
    assert torch.allclose(seen[0], torch.tensor([[-7.0, 0.0, 6.9088]]), atol=1e-4)


def test_a_confident_wrong_pixel_costs_its_logit():
    likelihood = pa.likelihoods.Bernoulli(1)
    assert likelihood(torch.tensor([40.0])).log_prob(torch.tensor([0.0])).item() == pytest.approx(-40.0)


@pytest.mark.parametrize("name", POSTERIORS)
def test_posterior_takes_leading_dimensions_and_passes_gradients(name):
    make, size = POSTERIORS[name]
    posterior, h = make(), torch.randn(2, 5, size, requires_grad=True)
    q = posterior(h)
    assert posterior.size == size and q.batch_shape == (2, 5) and q.event_shape == (3,)
    q.rsample().sum().backward()
    assert h.grad is not None and h.grad.isfinite().all()


@pytest.mark.parametrize("support, code", [("real", lambda h: h), ("unit_interval", torch.sigmoid), ("positive", torch.exp)])
def test_a_point_lies_in_the_priors_support(support, code):
    h = torch.randn(5, 3)
    posterior = pa.posteriors.Delta().build(Context(prior=pa.priors.Flat(3, support=support)))
    assert torch.allclose(posterior(h).mean, code(h))


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_gets_a_gradient_and_the_dtype_moves(name):
    part = MODULES[name]().double()
    h = (torch.randn(4, part.size, dtype=torch.float64),) if getattr(part, "size", 0) else ()
    d = part(*h)
    x = d.rsample() if name.startswith("posterior") else d.sample().clone()  # transforms remember what they drew
    assert x.dtype == torch.float64
    (d.log_prob(x).sum() + x.sum()).backward() if list(part.parameters()) else None  # of a point the draw alone has a gradient
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", MODULES | DISCRETE)
def test_the_device_moves(name):
    part = (MODULES | DISCRETE)[name]().cuda()
    h = (torch.randn(4, part.size, device="cuda"),) if getattr(part, "size", 0) else ()
    d = part(*h)
    x = d.sample() if name.startswith("posterior") else d.sample().clone()  # transforms remember what they drew
    assert x.device.type == "cuda" and d.log_prob(x).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_it_is_written_as_json_and_rebuilt(name):
    part = ALL[name]()
    written = json.loads(json.dumps(describe(part)))
    again = rebuild(written, name_of(type(part)).partition(".")[0])
    assert type(again) is type(part) and describe(again) == written


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_round_trip(name):
    part, other = MODULES[name](), MODULES[name]()
    with torch.no_grad():
        for p in part.parameters():
            p.add_(0.7)
    other.load_state_dict(part.state_dict())
    h = (torch.randn(4, part.size),) if getattr(part, "size", 0) else ()
    x = part(*h).sample().clone()
    assert torch.equal(part(*h).log_prob(x), other(*h).log_prob(x))


def test_a_priors_transforms_are_trained_and_move(digits):
    flow = dist.transforms.spline_coupling(4, 2, hidden_dims=[8])
    base = dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1)
    prior = pa.priors.FromDistribution(dist.TransformedDistribution(base, [flow]))
    ae = pa.Autoencoder(prior, pa.likelihoods.Bernoulli(64), pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    before = [p.clone() for p in flow.parameters()]
    pa.fit(ae, digits.train, epochs=1, progress=False)
    assert not any(torch.equal(a, b) for a, b in zip(before, ae.prior.parameters(), strict=True))
    assert ae.double().prior().sample().dtype == torch.float64


# --- corruption ---


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_fresh_and_keeps_shape_and_range(name, grey):
    corrupt, x = CORRUPTIONS[name](), grey.test.x[:50].reshape(50, 8, 8)
    once, twice = corrupt(x), corrupt(x)
    assert once.shape == x.shape and not torch.equal(once, twice)
    if name != "Gaussian":
        assert once.min() >= x.min() and once.max() <= x.max()


@pytest.mark.parametrize("fraction, size, masked", [(0.25, 10, 2), (0.29, 100, 29), (0.0, 10, 0), (1.0, 10, 10), (0.7, 10, 7)])
def test_masking_sets_exactly_floor_of_the_fraction(fraction, size, masked):
    assert ((pa.corruption.Masking(fraction)(torch.ones(6, size)) == 0).sum(1) == masked).all()


def test_salt_and_pepper_is_half_salt():
    noisy = pa.corruption.SaltPepper(0.4, low=-1.0, high=2.0)(torch.zeros(400, 100))
    salt, pepper = (noisy == 2).float().mean().item(), (noisy == -1).float().mean().item()
    assert salt == pytest.approx(0.2, abs=0.01) and pepper == pytest.approx(0.2, abs=0.01)


def test_gaussian_noise_has_its_scale_and_bernoulli_mask_its_rate():
    x = torch.ones(400, 100)
    assert pa.corruption.Gaussian(0.3)(x).std().item() == pytest.approx(0.3, rel=0.02)
    assert (pa.corruption.BernoulliMask(0.3)(x) == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


# --- networks ---

IMAGES = torch.Size([64])
NETWORKS = {
    "MLP": (lambda: pa.nets.MLP([30, 20]), lambda: pa.nets.MLP([20, 30])),
    "Linear": (lambda: pa.nets.Linear(), lambda: pa.nets.Linear()),
    "GatedMLP": (lambda: pa.nets.GatedMLP([30, 20]), lambda: pa.nets.GatedMLP(30)),
    "Residual": (lambda: pa.nets.Residual(30), lambda: pa.nets.Residual(30, blocks=1)),
    "Conv": (lambda: pa.nets.Conv([8, 16]), lambda: pa.nets.Deconv([16, 8])),
}


@pytest.mark.parametrize(
    "likelihood", [lambda: pa.likelihoods.Bernoulli(64), lambda: pa.likelihoods.Normal(64, scale=None)], ids=["1", "2"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_size_themselves_and_learn(name, likelihood, digits):
    encoder, decoder = NETWORKS[name]
    ae = pa.Autoencoder(pa.priors.Normal(4), likelihood(), pa.posteriors.Normal(), encoder(), decoder())
    assert ae.decode(torch.randn(2, 3, 4)).batch_shape == (2, 3)
    before = [p.detach().clone() for p in ae.parameters()]
    losses = pa.fit(ae, digits.train, epochs=4, batch_size=64, progress=False).loss
    assert losses[-1] < losses[0] and not any(p.equal(old) for p, old in zip(ae.parameters(), before, strict=True))


def test_a_convolutions_channels_are_the_choices_of_each_pixel():
    likelihood = pa.likelihoods.Categorical(64, categories=5)
    ae = pa.Autoencoder(pa.priors.Normal(4), likelihood, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.Deconv([16, 8]))
    last = [module for module in ae.decoder.modules() if isinstance(module, nn.ConvTranspose2d | nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0]))
    assert (ae.decode(torch.randn(2, 4)).sample() == 3).double().mean() > 0.99


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 8, 16)])
def test_convolutions_take_their_shape_from_the_likelihood_or_the_schema(shape, flat, mask):
    event = (math.prod(shape),) if flat else shape
    likelihood = pa.likelihoods.Missing(pa.likelihoods.Normal(event, scale=1.0), mask=mask)
    schema = pa.data.Schema(image_shape=shape) if flat else None
    networks = pa.nets.Conv([8, 16]), pa.nets.Deconv([16, 8])
    ae = pa.Autoencoder(pa.priors.Normal(4), likelihood, pa.posteriors.Normal(), *networks, schema=schema)
    assert ae.reconstruct(torch.randn(2, *event)).shape == (2, *event)
    (last,) = [module for module in ae.decoder.modules() if isinstance(module, nn.ConvTranspose2d)][-1:]
    assert last.out_channels == shape[0]


def test_a_tied_decoder_shares_the_encoders_matrices(digits):
    parts = pa.likelihoods.Bernoulli(64), pa.posteriors.Delta(), pa.nets.MLP([30, 20], activation="Sigmoid"), pa.nets.Tied("Sigmoid")
    ae = pa.Autoencoder(pa.priors.Flat(10), *parts)
    matrices = [layer.weight for layer in ae.encoder if hasattr(layer, "weight")]
    assert sum(p.dim() == 2 for p in ae.parameters()) == len(matrices) == 3
    x = digits.test.x[:20]
    z = ae.encode(x).mean
    by_hand = z
    for matrix, layer in zip(matrices[::-1], ae.decoder[::2], strict=True):
        by_hand = (by_hand.sigmoid() if by_hand is not z else by_hand) @ matrix + layer.bias
    assert torch.allclose(ae.decode(z).base_dist.logits, by_hand, atol=1e-5)
    copies = [matrix.detach().clone().requires_grad_() for matrix in matrices]
    once = torch.autograd.grad(-ae.decode(z.detach()).log_prob(x).sum() - ae.decode(z).log_prob(x).sum() * 0, matrices)
    both = torch.autograd.grad(-ae.decode(ae.encode(x).mean).log_prob(x).sum(), matrices)
    h = x
    biases = [layer.bias for layer in ae.encoder if hasattr(layer, "bias")]
    for i, (matrix, bias) in enumerate(zip(copies, biases, strict=True)):  # the encoder's use alone
        h = (h.sigmoid() if i else h) @ matrix.t() + bias
    alone = torch.autograd.grad(-ae.decode(h).log_prob(x).sum(), copies)
    assert all(torch.allclose(b, o + a, atol=1e-3) for b, o, a in zip(both, once, alone, strict=True))
    losses = pa.fit(ae, digits.train, epochs=4, lr=1e-2, progress=False).loss
    other = ae.replace(corruption=pa.corruption.Masking(0.1))
    assert losses[-1] < losses[0] and torch.equal(other.reconstruct(x), ae.reconstruct(x))
    assert other.decoder[-1]._layer[0] is other.encoder[0] and other.encoder[0] is not ae.encoder[0]


def test_mlp_depth_activation_and_dropout():
    network = pa.nets.MLP([300, 150], activation="tanh", dropout=0.5).build(torch.Size([8, 8]), 5)
    assert [tuple(layer.weight.shape) for layer in network if hasattr(layer, "weight")] == [(300, 64), (150, 300), (5, 150)]
    assert sum(isinstance(layer, torch.nn.Dropout) for layer in network) == 2
    x = torch.randn(7, 8, 8)
    assert not torch.equal(network.train()(x), network(x)) and torch.equal(network.eval()(x), network(x))
    assert networks.apply(network, torch.randn(2, 3, 7, 8, 8), 2).shape == (2, 3, 7, 5)


def test_a_trained_flow_is_replaced_and_copied():
    """Its transforms remember the last draw, with its graph."""
    ae = small_vae(prior=pa.priors.Flow(4, layers=2))
    pa.fit(ae, torch.rand(20, 64).round(), epochs=1, progress=False, compile="eager")
    again = ae.replace(likelihood=pa.likelihoods.ContinuousBernoulli(64))
    assert torch.equal(again.decoder[0].weight, ae.decoder[0].weight)
    assert small_vae(prior=ae.prior).prior is not ae.prior


# --- a part from outside the package ---


@pa.register("likelihoods")
class Cauchy(pa.likelihoods.Likelihood):
    """Real x with very heavy tails."""

    def __init__(self, event_shape=None, scale: float | str = "learned"):
        super().__init__(dist.Cauchy, event_shape, scale=scale)


def test_a_new_likelihood_is_a_few_lines_and_found_by_name(grey, tmp_path):
    ae = pa.recipes.vae(grey).replace(likelihood=Cauchy())
    pa.fit(ae, grey.train, epochs=1, progress=False)
    pa.save(ae, tmp_path / "model.safetensors")
    again = pa.load(tmp_path / "model.safetensors")
    assert type(again.likelihood) is Cauchy and again.likelihood.family.support is constraints.real


def test_library_size_takes_totals_and_shares_from_data():
    x = torch.poisson(torch.tensor([[8.0, 2.0, 0.0]]) * torch.tensor([[1.0], [10.0], [100.0]]).repeat(200, 1))
    likelihood = pa.likelihoods.LibrarySize(pa.likelihoods.NegativeBinomial(3))
    likelihood.measure(x)
    assert likelihood.total.tolist() == pytest.approx([math.log(100), math.log(10) * (2 / 3) ** 0.5], rel=0.02)
    assert likelihood.log_shares.exp().tolist() == pytest.approx([0.8, 0.2, 0.0], abs=0.01) and likelihood.log_shares.isfinite().all()
    p = likelihood(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert p.mean.sum().item() == pytest.approx(likelihood.total.sum().exp().item(), rel=1e-4)
    shown = likelihood.preprocess(x)
    assert shown.shape == (600, 4) and shown[:, 3].mean().abs() < 1e-4 and shown[:, 3].std() == pytest.approx(1.0, rel=0.01)
    vae = pa.recipes.vae(torch.poisson(torch.full((50, 64), 3.0)))
    assert isinstance(vae.likelihood, pa.likelihoods.LibrarySize) and vae.sample(3).shape == (3, 64)
    with pytest.raises(ValueError, match="LibrarySize: expected a likelihood of counts"):
        pa.likelihoods.LibrarySize(pa.likelihoods.Normal(3))


def test_a_module_that_a_recipe_built_is_checked_without_a_copy():
    class Large(torch.nn.Linear):
        def __deepcopy__(self, memo):
            raise MemoryError("a second copy")

    class Recipe(pa.nets.Network):
        def build(self, inputs, outputs, encoder=None, image=None):
            return Large(inputs.numel(), outputs)

    ae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(5), pa.posteriors.Normal(), Recipe(), Recipe())
    assert ae.encoder.training and ae.decode(torch.zeros(1, 2)).event_shape == (5,)
