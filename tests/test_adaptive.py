"""The adaptive proposal: right where the guide is, where it is bad, and where p(z|x) has several modes that the guide misses."""

import math

import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from pyro import poutine

import pyroae as pa
from pyroae import programs
from pyroae.evaluation.curvature import Curvature, inverse_factor
from pyroae.evaluation.density import Density, PriorGuide
from pyroae.evaluation.networks import Networks
from pyroae.evaluation.ridges import ridge_axes
from pyroae.evaluation.splitt import SplitStudentT, standard_noise


def test_a_guide_that_is_bad_is_replaced_and_one_that_is_good_is_kept():
    bad, good = linear_gaussian(widen=0.4), linear_gaussian(widen=1.05)
    score = pa.log_likelihood(bad.ae, bad.x, particles=2000)
    assert ((score.values - bad.log_p).abs() < 5 * score.errors).all() and score.mc_se < 0.003
    assert score.fitted.all() and (score.khat < 0.7).all() and score.proposal == "auto"
    kept = pa.log_likelihood(good.ae, good.x, particles=200)
    assert not kept.fitted.any() and torch.equal(kept.values, pa.log_likelihood(good.ae, good.x, particles=200).values)


def test_some_examples_of_a_block_keep_the_guide():
    exact = linear_gaussian(widen=1.05)
    with torch.no_grad():
        exact.ae.encoder.weight.mul_(1.3)  # the further from the mean, the worse
    score = pa.log_likelihood(exact.ae, exact.x, particles=2000)
    assert score.fitted.any() and not score.fitted.all() and ((score.values - exact.log_p).abs() < 5 * score.errors + 1e-3).all()


def test_stated_errors_are_those_over_seeds():
    exact = linear_gaussian(widen=0.4)
    runs = [pa.log_likelihood(exact.ae, exact.x[:20], particles=100, seed=seed) for seed in range(20)]
    values, errors = (torch.stack([getattr(run, name) for run in runs]) for name in ("values", "errors"))
    assert 0.8 < (values.var(0).mean() / errors.square().mean()).sqrt() < 1.25
    assert abs((values.mean(0) - exact.log_p[:20]).mean()) < 0.01


def quadratic(f, extra):
    """x1 ~ N(f(z1), .1), and as many linear latents beside it."""
    w = torch.randn(extra, extra) / max(1, extra) ** 0.5

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1 + extra), 1.0).to_event(1))
            mean = torch.cat([f(z[..., :1]), z[..., 1:] @ w.T], -1)
            pyro.sample("x", dist.Normal(mean, torch.tensor([0.1] + [0.5] * extra)).to_event(1), obs=x)

    return model, w


def one_mode(w, inverse):
    """A guide on one of the modes, near the exact posterior of the linear latents."""
    covariance = torch.linalg.inv(torch.eye(len(w)) + w.T @ w / 0.25)

    def guide(x):
        mean = torch.cat([inverse(x[:, :1]), x[:, 1:] @ w @ covariance / 0.25], -1)
        scale = torch.cat([torch.tensor([0.1]), 1.1 * covariance.diagonal().sqrt()])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    return guide


def by_quadrature(x, f, w):
    grid = torch.linspace(-8, 8, 80001, dtype=torch.float64)
    first = (dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(f(grid), 0.1).log_prob(x[:, :1].double())).logsumexp(1)
    covariance = (w @ w.T + 0.25 * torch.eye(len(w))).double()
    rest = dist.MultivariateNormal(torch.zeros(len(w)).double(), covariance).log_prob(x[:, 1:].double()) if len(w) else 0.0
    return first + (grid[1] - grid[0]).log() + rest


SHAPES = {
    "two modes": (lambda z: z**2, lambda x: x.clamp(min=0.01) ** 0.5, (0.5, 4.0), 2),
    "two unequal modes": (lambda z: z**2 + 0.3 * z, lambda x: -0.15 + (x + 0.0225) ** 0.5, (0.5, 4.0), 2),
    "four modes": (lambda z: (z**2 - 1) ** 2, lambda x: (1 + x**0.5) ** 0.5, (0.3, 0.7), 4),
    "four unequal modes": (lambda z: (z**2 - 1) ** 2 + 0.1 * z, lambda x: (1 + x**0.5) ** 0.5, (0.4, 0.6), 4),
}


@pytest.mark.parametrize("extra", [0, 19])
@pytest.mark.parametrize("name", SHAPES)
def test_modes_that_the_guide_misses_are_found(name, extra):
    f, inverse, (low, high), modes = SHAPES[name]
    model, w = quadratic(f, extra)
    x = torch.cat([torch.linspace(low, high, 16)[:, None], torch.randn(16, extra) @ w.T + 0.5 * torch.randn(16, extra)], 1)
    guide, truth = one_mode(w, inverse), by_quadrature(x, f, w)
    score = pa.log_likelihood(model, x, guide, particles=2000)
    assert (truth - pa.log_likelihood(model, x, guide, particles=2000, proposal="guide").values).mean() > 0.3
    assert ((score.values - truth).abs() < 5 * score.errors + 0.05).double().mean() >= 15 / 16 and score.modes.median() >= modes


@pytest.mark.parametrize("size", [1, 20])
def test_a_small_component_of_the_prior_is_found(size):
    weights, means = torch.tensor([0.9, 0.1]), torch.tensor([-3.0, 3.0])

    def model(x):
        components = dist.Normal(means[:, None].expand(2, size), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weights), components))
            pyro.sample("x", dist.Normal(z.abs(), 0.5).to_event(1), obs=x)

    def guide(x):  # on the large one
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(-x, 0.5).to_event(1))

    x = (means[torch.multinomial(weights, 16, True)][:, None] + torch.randn(16, size)).abs() + 0.5 * torch.randn(16, size)
    grid = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    entries = [
        (dist.Normal(m, 1.0).log_prob(grid) + dist.Normal(grid.abs(), 0.5).log_prob(x.double()[..., None])).logsumexp(-1) for m in means
    ]
    truth = torch.stack([(e + (grid[1] - grid[0]).log()).sum(1) for e in entries], 1).add(weights.double().log()).logsumexp(1)
    score = pa.log_likelihood(model, x, guide, particles=1000)
    assert ((score.values - truth).abs() < 5 * score.errors + 0.02).double().mean() >= 15 / 16


def test_annealing_from_the_prior_shows_a_missed_mode():
    model, w = quadratic(lambda z: z**2, 0)
    x = torch.linspace(0.5, 3.0, 12)[:, None]
    guide = one_mode(w, lambda x: x**0.5)
    missed = pa.log_likelihood(model, x, guide, particles=1000, proposal="guide")
    assert missed.verdict.state != "wrong"
    wrong = pa.cross_check(missed, model, x, guide, examples=6, chains=64).verdict  # with 16, one to three of the six are told
    assert wrong.state == "wrong" and 0.35 < wrong.low_by < 0.8 and "modes of p(z|x) are missed" in str(wrong)
    found = pa.cross_check(pa.log_likelihood(model, x, guide, particles=1000), model, x, guide, examples=6).verdict
    assert found.state == "no sign of trouble" and "no missed mode" in str(found)
    assert pa.decompose(model, x, guide, particles=1000).approximation.mean().item() == pytest.approx(0.69, abs=0.15)


PARTS = {
    "Normal, learned scale": {"likelihood": pa.likelihoods.Normal(8)},
    "Normal, scale of the decoder": {"likelihood": pa.likelihoods.Normal(8, scale=None)},
    "Poisson": {"likelihood": pa.likelihoods.Poisson(8)},
    "NegativeBinomial": {"likelihood": pa.likelihoods.NegativeBinomial(8)},
    "GreyLevels": {"likelihood": pa.likelihoods.GreyLevels(8, levels=4)},
    "LogisticMixture": {"likelihood": pa.likelihoods.LogisticMixture(8, components=2)},
    "Gamma prior": {"prior": pa.priors.FromPyro("Gamma", 3, concentration=2.0, rate=1.0), "posterior": pa.posteriors.FromPyro("LogNormal")},
    "Laplace prior": {"prior": pa.priors.Laplace(3)},
    "mixture prior": {"prior": pa.priors.GaussianMixture(3, components=3)},
    "VampPrior": {"prior": pa.priors.VampPrior(3, components=3)},
    "flow prior": {"prior": pa.priors.Flow(3)},
    "two levels": {"prior": pa.priors.Hierarchical(3, top=2), "posterior": pa.posteriors.Hierarchical()},
    "point posterior": {"posterior": pa.posteriors.Delta()},
    "gated networks": {"encoder": pa.nets.GatedMLP(8), "decoder": pa.nets.GatedMLP(8)},
}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_agrees_with_the_prior_as_proposal(name):
    parts = {"prior": pa.priors.Normal(3), "likelihood": pa.likelihoods.Bernoulli(8), "posterior": pa.posteriors.Normal()} | PARTS[name]
    ae = pa.Autoencoder(**{"encoder": pa.nets.MLP(8), "decoder": pa.nets.MLP(8)} | parts)
    x = ae.sample(6)
    score = pa.log_likelihood(ae, x, particles=2000, precision="highest")
    plain = pa.log_likelihood(ae, x, particles=40_000, proposal=pa.proposals.prior)
    errors = (score.errors.square() + plain.errors.square()).sqrt()
    assert ((score.values - plain.values).abs() < 5 * errors + 1e-3).all()
    # the density of an untrained flow has kinks, which a mixture of t distributions has not: for single examples 10 to 90 draws count
    assert score.ess.median() > 40 if name == "flow prior" else score.ess.min() > 50


def test_a_flow_is_traced_after_a_curvature_has_left_its_tensors_in_it():
    ae = small_vae(8, 3, prior=pa.priors.Flow(3, layers=2, hidden=4))
    x = torch.rand(4, 8).round()
    eager, traced = (pa.log_likelihood(ae, x, particles=100, compile=mode) for mode in ("eager", "traced"))
    assert torch.equal(eager.values, traced.values) and traced.proposal == "auto"


def test_curvature_is_the_hessian_where_networks_are_piecewise_linear():
    ae = small_vae().double()
    x = torch.rand(5, 64).round().double()
    with programs.eval_mode(ae.model, ae.guide, seed=0):
        density = Density(ae.model, ae.guide, (x,))
        u = torch.randn(1, 5, 4, dtype=torch.float64)
        slope, curvature = Curvature(density, torch.ones(5, 4, dtype=torch.float64), Networks(ae.model))(u)
        with torch.enable_grad():
            single = lambda i: lambda v: density.log_joint(torch.cat([u[:, :i], v[None, None], u[:, i + 1 :]], 1))[0, i]  # noqa: E731
            exact = [torch.autograd.functional.hessian(single(i), u[0, i]) for i in range(5)]
            gradient = torch.autograd.functional.jacobian(lambda v: density.log_joint(v).sum(), u)[0]
    assert torch.allclose(curvature, -torch.stack(exact), atol=1e-6) and torch.allclose(slope, gradient, atol=1e-8)


def test_axes_follow_the_heaviest_tail():
    w = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 0.0, -1.0, 1.0]), dim=0)
    covariances = torch.stack([torch.eye(5), torch.eye(5) + 8 * w[:, None] * w])
    prior = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.9, 0.1])), dist.MultivariateNormal(torch.zeros(2, 5), covariances))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.1 * pyro.sample("z", prior)[..., 0], 1.0), obs=x)

    x = torch.zeros(3)
    density = Density(model, PriorGuide(model), (x,))
    axes = ridge_axes(density, torch.zeros(3, 5).double(), torch.eye(5).double().expand(3, -1, -1), torch.float32)
    assert ((axes[:, :, 0] @ w.double()).abs() > 0.99).all() and torch.allclose(axes @ axes.mT, torch.eye(5).double(), atol=1e-5)


def test_a_mixture_of_split_t_is_normalised_and_draws_what_it_says():
    eye = torch.eye(2, dtype=torch.float64)
    tril = torch.stack([torch.tensor([[1.0, 0.0], [0.5, 0.7]]), 0.5 * eye]).double()[None]
    scales = torch.tensor([[[0.9, 1.6], [1.0, 1.0]], [[1.0, 1.2], [0.9, 1.0]]]).double()[None]
    q = SplitStudentT(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[[0.0, 0.0], [1.0, -2.0]]]).double(), tril, scales)
    q = q.extended(torch.tensor([0]), torch.tensor([[2.0, 2.0]]).double(), eye[None], 0.2)
    grid = torch.linspace(-15, 15, 1001, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)[:, None]
    mass = q.log_prob(points).exp()[:, 0] * (grid[1] - grid[0]) ** 2
    assert mass.sum().item() == pytest.approx(1.0, abs=2e-3)
    assert torch.allclose((mass[:, None] * points[:, 0]).sum(0), q.sample((200_000,)).mean((0, 1)), atol=0.02)
    u, log_q = q.placed_with_log_prob(*standard_noise(100, q.loc[:, 0]))
    single = SplitStudentT(*(getattr(q, name)[:, :1] for name in ("logits", "loc", "axes", "scales")))
    v, log_single = single.placed_with_log_prob(*standard_noise(100, q.loc[:, 0]))
    assert torch.allclose(log_q, q.log_prob(u)) and torch.allclose(log_single, single.log_prob(v))


def test_too_few_particles_to_judge_the_guide_by_are_drawn_from_it():
    ae, x = small_vae(8), torch.rand(5, 8).round()
    auto, guide = (pa.log_likelihood(ae, x, particles=24, proposal=proposal) for proposal in ("auto", "guide"))
    assert torch.equal(auto.values, guide.values) and auto.proposal == "guide" and "k-hat needs 25 particles" in str(auto.verdict)
    assert pa.log_likelihood(ae, x, particles=25).proposal == "auto"


def test_what_cannot_be_fitted_is_drawn_from_the_guide():
    ae = pa.Autoencoder(pa.priors.OneHot(4), pa.likelihoods.Bernoulli(8), pa.posteriors.OneHot(), pa.nets.MLP(8), pa.nets.MLP(8))
    x = torch.rand(5, 8).round()
    auto, guide = (pa.log_likelihood(ae, x, particles=100, proposal=proposal) for proposal in ("auto", "guide"))
    errors = (auto.errors.square() + guide.errors.square()).sqrt()
    assert ((auto.values - guide.values).abs() < 5 * errors + 1e-4).all() and not auto.fitted.any() and (auto.modes == -1).all()
    assert auto.verdict.state == "uncertain" and "on 5 of them none were looked for" in str(auto.verdict)
    with pytest.raises(ValueError, match='"auto", "guide"'):
        pa.log_likelihood(ae, x, proposal="Laplace")


def two_sites(masked=False):
    """x ~ N((z1, z2), 1) and a guide that is exact where x1 < 0 and too narrow elsewhere; with its closed form."""

    def model(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("z1", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=(x[:, 1] < 0) | torch.tensor(not masked)):
                second = pyro.sample("z2", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.stack([first, 0.0 * second if masked else second], -1), 1.0).to_event(1), obs=x)

    def guide(x):
        scale = torch.where(x < 0, 0.5**0.5, 0.3)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Normal(x[:, 0] / 2, scale))
            pyro.sample("z2", dist.Normal(0.0 if masked else x[:, 1] / 2, 1.0 if masked else scale))

    scales = torch.tensor([2.0, 1.0 if masked else 2.0]).sqrt()
    return model, guide, lambda x: dist.Normal(0.0, scales).log_prob(x).sum(-1)


@pytest.mark.parametrize("masked", [False, True])
def test_a_guide_of_several_sites_is_kept_for_the_examples_that_it_fits(masked):
    model, guide, log_p = two_sites(masked)
    x = 1.5 * torch.randn(40, 2)
    score = pa.log_likelihood(model, x, guide, particles=1000)
    assert torch.equal(score.fitted, x[:, 0] >= 0)
    assert ((score.values - log_p(x)).abs() < 5 * score.errors + 1e-3).all() and score.mc_se < 0.01


def fitted_to(model, guide, x, seed=3):
    """The rows that have a proposal of their own, and its components there."""
    with programs.eval_mode(model, guide, seed=seed):
        site = poutine.trace(pa.proposals.Adaptive()(model, guide, x)).get_trace(x).nodes["_flat"]["fn"]
    return site.rows, site.fitted


def test_what_is_fitted_to_an_example_does_not_depend_on_the_others():
    model, guide, _ = two_sites()
    x = 1.5 * torch.randn(40, 2)
    rows, together = fitted_to(model, guide, x)
    for i, row in list(enumerate(rows.tolist()))[:5]:
        _, alone = fitted_to(model, guide, x[row : row + 1])
        for name in ("logits", "loc", "axes", "scales"):
            assert torch.allclose(getattr(alone, name)[0], getattr(together, name)[i], atol=0.02), name
    others = torch.cat([x[:5], torch.randn(35, 2)])
    some, same = (pa.log_likelihood(model, rows, guide, particles=50) for rows in (x, others))
    assert torch.allclose(some.values[:5], same.values[:5], atol=1e-5) and not torch.equal(some.fitted, same.fitted)


@pytest.mark.parametrize("outside", ["minus infinity", "NaN"])
def test_an_example_without_a_density_leaves_the_others_as_they_are(outside):
    fn, x = {"minus infinity": (dist.Poisson, [1.0, -1.0, 9.0]), "NaN": (lambda rate: dist.Gamma(rate, 1.0), [1.0, -1.0, 9.0])}[outside]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn(pyro.sample("z", dist.Normal(0.0, 1.0)).exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 0.3))

    x = torch.tensor(x)
    with pyro.validation_enabled(False):
        auto, by_guide = (pa.log_likelihood(model, x, guide, particles=100, proposal=proposal) for proposal in ("auto", "guide"))
        good = pa.log_likelihood(model, x[[0, 2]], guide, particles=100)
    assert torch.equal(auto.fitted, torch.tensor([True, False, True])) and not by_guide.values[1].isfinite()
    assert torch.equal(auto.values[1].nan_to_num(1.0), by_guide.values[1].nan_to_num(1.0))
    assert ((auto.values - good.values[[0, 0, 1]]).abs() < 5 * (auto.errors + good.errors[[0, 0, 1]]))[[0, 2]].all()
    assert auto.verdict.state == "wrong" and "1 of the 3 examples" in str(auto.verdict) and "[wrong]" in str(auto)


@pytest.mark.parametrize("largest, exact", [(1e3, True), (1e17, False), (1e26, False)])
def test_a_precision_that_rounding_has_made_indefinite_still_has_a_factor(largest, exact):
    rotation = torch.linalg.qr(torch.randn(7, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    precision = (rotation * torch.logspace(-1, math.log10(largest), 20, dtype=torch.float64)) @ rotation.mT
    tril = inverse_factor((precision + precision.mT) / 2)
    assert tril.isfinite().all() and torch.equal(tril, tril.tril())
    if exact:
        assert torch.allclose(tril @ tril.mT @ precision, torch.eye(20, dtype=torch.float64), atol=1e-9)
