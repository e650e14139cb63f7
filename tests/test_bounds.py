"""Bounds against closed forms and brute force on linear-Gaussian models in double precision."""

import math

import numpy as np
import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

import pyroae as pa
from pyroae import programs

CIWAE, IWAE, PIWAE, Renyi, Tempered = (getattr(pa.objectives, name) for name in ("CIWAE", "IWAE", "PIWAE", "Renyi", "Tempered"))

ALL = {
    "IWAE": lambda: IWAE(5),
    "STL": lambda: IWAE(5, gradient="stl"),
    "DReG": lambda: IWAE(5, gradient="dreg"),
    "MIWAE": lambda: IWAE(3, groups=4),
    "one particle": lambda: IWAE(1),
    "one particle, DReG": lambda: IWAE(1, gradient="dreg"),
    "CIWAE": lambda: CIWAE(5, beta=0.3),
    "Tempered": lambda: Tempered(2.0),
    "warm-up": lambda: Tempered(pa.schedules.Linear(10)),
    "PIWAE": lambda: PIWAE(3, groups=4),
    "Renyi": lambda: Renyi(0.5, 5),
    "Renyi, alpha 1": lambda: Renyi(1.0, 5),
    "Renyi, alpha below 0": lambda: Renyi(-1.0, 5),
    "free bits": lambda: pa.objectives.FreeBits(0.5),
    "capacity": lambda: pa.objectives.Capacity(pa.schedules.Linear(20, end=5.0), weight=10.0),
    "beta-TC": lambda: pa.Penalised(pa.penalties.TotalCorrelation(256, weight=3.0)),
    "WAE": lambda: pa.Penalised(pa.penalties.MMD(100.0), Tempered(0.0)),
}


def loss_of(objective, model, x):
    return objective.differentiable_loss(model.ae.model, model.ae.guide, x)


def gradient_of(objective, model, x, of="encoder"):
    return torch.autograd.grad(loss_of(objective, model, x), getattr(model.ae, of).weight)[0].flatten()


@torch.no_grad()
@pytest.mark.parametrize("particles, groups", [(1, 1), (5, 1), (3, 4)])
def test_value_equals_brute_force(particles, groups):
    model = linear_gaussian(widen=1.3)
    ae, x = model.ae, model.x
    torch.manual_seed(7)
    ours = -loss_of(IWAE(particles, groups), model, x).item()
    torch.manual_seed(7)
    q, total = ae.encode(x), 0.0
    z = q.sample((groups * particles,)) if groups * particles > 1 else q.sample()[None]
    for n in range(len(x)):
        for m in range(groups):
            weights = []
            for k in range(m * particles, (m + 1) * particles):
                log_p = ae.prior().log_prob(z[k, n]) + ae.decode(z[k, n]).log_prob(x[n])
                weights.append(math.exp(log_p - q.log_prob(z[k])[n] - model.log_p[n]))
            total += (math.log(sum(weights) / particles) + model.log_p[n].item()) / groups
    assert ours == pytest.approx(total, rel=1e-9)


AT_THE_EXACT_POSTERIOR = ["IWAE", "STL", "DReG", "MIWAE", "one particle", "PIWAE", "Renyi", "Renyi, alpha 1", "Renyi, alpha below 0"]


@pytest.mark.parametrize("name", AT_THE_EXACT_POSTERIOR)
def test_bounds_equal_log_p_at_the_exact_posterior(name):
    model = linear_gaussian()
    assert -loss_of(ALL[name](), model, model.x).item() == pytest.approx(model.log_p.sum().item(), abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 0.999, 2.0])
def test_renyi_equals_the_power_mean_of_the_weights(alpha):
    model = linear_gaussian(widen=1.3)
    torch.manual_seed(7)
    ours = -loss_of(Renyi(alpha, 4), model, model.x).item()
    torch.manual_seed(7)
    q, total = model.ae.encode(model.x), 0.0
    z = q.sample((4,))
    ratio = (model.ae.prior().log_prob(z) + model.ae.decode(z).log_prob(model.x) - q.log_prob(z) - model.log_p).exp()
    for n in range(len(model.x)):
        total += math.log(sum(w.item() ** (1 - alpha) for w in ratio[:, n]) / 4) / (1 - alpha) + model.log_p[n].item()
    assert ours == pytest.approx(total, rel=1e-9)


def test_renyi_falls_with_alpha_from_the_weighted_bound_to_the_elbo():
    model, values = linear_gaussian(widen=1.3), {}
    alphas = (-0.5, 0.0, 0.3, 0.999999, 1.0, 3.0)
    objectives = {alpha: Renyi(alpha, 5) for alpha in alphas} | {"IWAE": IWAE(5), "ELBO": Trace_ELBO(5, 1, vectorize_particles=True)}
    for name, objective in objectives.items():
        torch.manual_seed(0)
        values[name] = -loss_of(objective, model, model.x).item()
    assert [values[alpha] for alpha in alphas] == sorted((values[alpha] for alpha in alphas), reverse=True)
    assert values[0.0] == pytest.approx(values["IWAE"], rel=1e-12) and values[1.0] == pytest.approx(values["ELBO"], rel=1e-12)
    assert values[0.999999] == pytest.approx(values[1.0], rel=1e-5)


def test_piwae_has_different_bounds_for_decoder_and_encoder():
    model, seen = linear_gaussian(widen=1.3), {}
    for name, objective in {"PIWAE": PIWAE(3, groups=4), "MIWAE": IWAE(3, groups=4), "IWAE": IWAE(12)}.items():
        torch.manual_seed(0)
        loss = loss_of(objective, model, model.x)
        seen[name] = loss, *torch.autograd.grad(loss, [model.ae.encoder.weight, model.ae.decoder.weight])
    assert seen["PIWAE"][0].item() == pytest.approx(seen["IWAE"][0].item(), rel=1e-12)
    assert torch.allclose(seen["PIWAE"][1], seen["MIWAE"][1]) and not torch.allclose(seen["PIWAE"][1], seen["IWAE"][1])
    assert torch.allclose(seen["PIWAE"][2], seen["IWAE"][2]) and not torch.allclose(seen["PIWAE"][2], seen["MIWAE"][2])


def test_bounds_rise_with_particles_towards_log_p():
    model = linear_gaussian(widen=1.5)
    means = [-sum(loss_of(IWAE(k), model, model.x).item() for _ in range(60)) / 60 for k in (1, 3, 10, 100)]
    assert means == sorted(means) and means[-1] < model.log_p.sum().item()
    assert model.log_p.sum().item() - means[-1] < 0.02 * (model.log_p.sum().item() - means[0])


@pytest.mark.parametrize("name", ["STL", "DReG"])
def test_gradients_have_no_variance_at_the_exact_posterior(name):
    model = linear_gaussian()
    assert gradient_of(ALL[name](), model, model.x).norm() < 1e-9
    assert gradient_of(IWAE(5), model, model.x).norm() > 1.0


@pytest.mark.parametrize("of", ["encoder", "decoder"])
def test_dreg_has_the_plain_gradients_mean_and_less_variance(of):
    model = linear_gaussian(widen=1.15)
    x = model.x[:5]
    plain, dreg = (torch.stack([gradient_of(IWAE(4, gradient=g), model, x, of) for _ in range(500)]) for g in ("plain", "dreg"))
    error = (plain.var(0) / 500 + dreg.var(0) / 500).sqrt()
    assert ((plain.mean(0) - dreg.mean(0)).abs() < 4.5 * error).all()
    assert of == "decoder" or dreg.var(0).sum() < 0.5 * plain.var(0).sum()


def quadrature(of, particles=2, nodes=40):
    """E of ``of(log-weights)`` over the draws of all particles, by Gauss-Hermite quadrature, for a scalar z."""
    model = linear_gaussian(d=3, k=1, widen=1.3)
    x, ae = model.x[:2], model.ae
    e, share = (torch.tensor(column) for column in np.polynomial.hermite_e.hermegauss(nodes))
    q = ae.encode(x)
    z = q.mean + e[:, None, None] * q.base_dist.scale  # (nodes, 2, 1)
    log_w = ae.prior().log_prob(z) + ae.decode(z).log_prob(x) - q.log_prob(z)  # (nodes, 2)
    grid = torch.cartesian_prod(*[torch.arange(nodes)] * particles)
    weight = (share / share.sum())[grid].prod(1, keepdim=True)
    exact = (weight * of(log_w[grid.T])).sum()
    return model, x, exact, torch.autograd.grad(-exact, [ae.encoder.weight, ae.decoder.weight])


def averaged(log_w):
    return log_w.logsumexp(0) - math.log(2)


EXACT = {
    "plain": (lambda: IWAE(2), averaged),
    "DReG": (lambda: IWAE(2, gradient="dreg"), averaged),
    "Renyi": (lambda: Renyi(0.5, 2), lambda log_w: 2 * averaged(log_w / 2)),
    "Renyi, alpha 1": (lambda: Renyi(1.0, 2), lambda log_w: log_w.mean(0)),
    "MIWAE": (lambda: IWAE(1, groups=2), lambda log_w: log_w.mean(0)),
    "CIWAE": (lambda: CIWAE(2, beta=0.4), lambda log_w: 0.4 * log_w.mean(0) + 0.6 * averaged(log_w)),
    "one particle, STL": (lambda: IWAE(1, gradient="stl"), lambda log_w: log_w.mean(0)),
    "ELBO": (lambda: Tempered(1.0, Trace_ELBO()), lambda log_w: log_w.mean(0)),
}


@pytest.mark.parametrize("name", EXACT)
def test_value_and_gradient_are_exact_in_expectation(name):
    make, of = EXACT[name]
    model, x, value, gradients = quadrature(of)
    draws = []
    for _ in range(500):
        loss = loss_of(make(), model, x)
        gradient = torch.autograd.grad(loss, [model.ae.encoder.weight, model.ae.decoder.weight])
        draws.append(torch.cat([loss.detach()[None], *(g.flatten() for g in gradient)]))
    draws, exact = torch.stack(draws), torch.cat([-value.detach()[None], *(g.flatten() for g in gradients)])
    assert ((draws.mean(0) - exact).abs() < 4.5 * draws.std(0) / 500**0.5 + 1e-9).all()


def test_stl_with_one_particle_is_unbiased_for_the_elbos_gradient():
    model = linear_gaussian(widen=1.15)
    x = model.x[:5]
    q = model.ae.encode(x)
    residual = (x - model.b - q.mean @ model.w.T).square().sum() + 5 * (q.variance[0] @ model.w.square().T).sum()
    kl = torch.distributions.kl_divergence(q, model.ae.prior().expand([5])).sum()
    exact = torch.autograd.grad(0.5 * residual / model.noise**2 + kl, model.ae.encoder.weight)[0].flatten()
    draws = torch.stack([gradient_of(IWAE(1, gradient="stl"), model, x) for _ in range(1000)])
    assert ((draws.mean(0) - exact).abs() < 4.5 * draws.std(0) / 1000**0.5).all()


BATCHED = {"IWAE": lambda: IWAE(8), "MIWAE": lambda: IWAE(2, groups=4), "Renyi": lambda: Renyi(0.5, 8), "PIWAE": lambda: PIWAE(2, groups=4)}


@pytest.mark.parametrize("name", BATCHED)
def test_a_mini_batch_is_unbiased_for_the_sum_over_all_data(name):
    """1,000 examples in batches of 16, where Pyro's RenyiELBO exceeds the log-likelihood: here each batch's bound is N/16 times its sum."""
    x, bound = torch.randn(1000, dtype=torch.float64) * 2**0.5, BATCHED[name]()
    log_p = dist.Normal(x.new_zeros(()), 2**0.5).log_prob(x)

    def model(rows):
        with pyro.plate("data", 1000, subsample=rows):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def exact_guide(rows):
        with pyro.plate("data", 1000, subsample=rows):
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.5**0.5))

    def wide_guide(rows):
        with pyro.plate("data", 1000, subsample=rows):
            pyro.sample("z", dist.Normal(x[rows] / 2, 1.0))

    rows = torch.arange(16)
    assert -bound.loss(model, exact_guide, rows) == pytest.approx(1000 / 16 * log_p[:16].sum().item(), rel=1e-9)
    whole = torch.tensor([-bound.loss(model, wide_guide, torch.arange(1000)) for _ in range(40)])
    batches = torch.tensor([-bound.loss(model, wide_guide, torch.randperm(1000)[:16]) for _ in range(500)])
    assert abs(batches.mean() - whole.mean()) < 4 * (batches.std() / 500**0.5 + whole.std() / 40**0.5)
    assert whole.mean() < log_p.sum()


@torch.no_grad()
def test_vectorized_particles_equal_single_ones():
    """With 16 x 3 numbers a draw, torch gives the same noise to one large draw and to several small ones."""
    model = linear_gaussian(widen=1.3)
    x, pair = model.x[:16], (model.ae.model, model.ae.guide)
    torch.manual_seed(0)
    together = IWAE(5).loss(*pair, x)
    torch.manual_seed(0)
    singles = []
    for _ in range(5):
        guide = poutine.trace(pair[1]).get_trace(x)
        trace = poutine.trace(poutine.replay(pair[0], guide)).get_trace(x)
        singles.append(trace.nodes["z"]["fn"].log_prob(guide.nodes["z"]["value"]) + trace.nodes["x"]["fn"].log_prob(x))
        singles[-1] = singles[-1] - guide.nodes["z"]["fn"].log_prob(guide.nodes["z"]["value"])
    log_w = torch.stack(singles)
    assert -together == pytest.approx((log_w.logsumexp(0) - math.log(5)).sum().item(), rel=1e-12)
    for wrap in (lambda elbo: Tempered(2.0, elbo), lambda elbo: pa.Penalised(pa.penalties.L2(1.0), elbo)):
        losses = []
        for vectorized in (False, True):
            torch.manual_seed(0)
            losses.append(wrap(Trace_ELBO(5, 1, vectorize_particles=vectorized)).loss(*pair, x))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["Trace", "TraceMeanField"])
def test_tempered_weighs_the_kl(elbo):
    model = linear_gaussian(widen=1.3)
    results = []
    for objective in (elbo, Tempered(1.0, elbo), Tempered(3.0, elbo), Tempered(0.0, elbo)):
        torch.manual_seed(0)
        results.append(objective.loss(model.ae.model, model.ae.guide, model.x))
    plain, one, three, none = results
    assert plain == pytest.approx(one, rel=1e-12) and three - one == pytest.approx(2 * (one - none), rel=1e-9)
    if isinstance(elbo, TraceMeanField_ELBO):
        assert one - none == pytest.approx(pa.elbo_terms(model.ae, model.x).kl.sum().item(), rel=1e-9)


def test_ciwae_is_the_mixture():
    model = linear_gaussian()
    loss = CIWAE(5, beta=0.3).loss(model.ae.model, model.ae.guide, model.x)
    torch.manual_seed(0)
    assert -loss == pytest.approx(model.log_p.sum().item(), rel=0.02)
    assert -CIWAE(5, beta=0.0).loss(model.ae.model, model.ae.guide, model.x) == pytest.approx(model.log_p.sum().item(), abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_every_objective_trains_in_fit_in_svi_and_as_a_module(name, digits):
    x, make = digits.train.x[:256], ALL[name]
    before = reconstruction(small_vae(), x)
    ae = small_vae()
    pa.fit(ae, x, elbo=make(), epochs=15, lr=1e-2, batch_size=64, progress=False, seed=0)
    assert reconstruction(ae, x) > 0.8 * before
    ae = small_vae()
    svi = SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-2}), make())
    for _ in range(40):
        svi.step(x)
    assert math.isfinite(svi.evaluate_loss(x)) and reconstruction(ae, x) > 0.8 * before
    loss = make()(ae.model, ae.guide)
    assert len(list(loss.parameters())) == 8 and loss(x).requires_grad


def reconstruction(ae, x):
    return pa.elbo_terms(ae, x).reconstruction.mean().item()


GUIDES = {
    "two levels": lambda: (pa.priors.Hierarchical(4, top=2, hidden=8), pa.posteriors.Hierarchical(hidden=8)),
    "flow": lambda: (pa.priors.Normal(4), pa.posteriors.Flow(hidden=8)),
    "mixture": lambda: (pa.priors.GaussianMixture(4, components=3), pa.posteriors.FullNormal()),
}
NOT_FOR = {"STL": {"two levels"}, "DReG": {"two levels"}, "one particle, DReG": {"two levels"}, "beta-TC": {"flow", "mixture"}}


@pytest.mark.parametrize("guide", GUIDES)
def test_objectives_take_guides_of_several_levels_flows_and_mixtures(guide, digits):
    x = digits.train.x[:64]
    for name, make in ALL.items():
        prior, posterior = GUIDES[guide]()
        ae = small_vae(prior=prior, posterior=posterior)
        objective = make()
        if guide in NOT_FOR.get(name, ()):
            with pytest.raises(ValueError, match="one latent site, got z, z2; use 'plain'|product over dimensions"):
                objective.loss(ae.model, ae.guide, x)
            continue
        before = reconstruction(ae, x)
        pa.fit(ae, x, elbo=objective, epochs=20, lr=1e-2, batch_size=32, progress=False, seed=0)
        assert reconstruction(ae, x) > before, name


@pytest.mark.parametrize("wrap", [lambda: Tempered(1.0), lambda: pa.Penalised(pa.penalties.L2(0.0)), lambda: CIWAE(5, beta=1.0)])
def test_the_wrapped_elbo_is_by_default_the_guides(wrap, digits):
    x = digits.test.x[:20]
    for guide, expected in (("two levels", Trace_ELBO), ("flow", TraceMeanField_ELBO)):
        prior, posterior = GUIDES[guide]()
        ae, objective = small_vae(prior=prior, posterior=posterior), wrap()
        torch.manual_seed(0)
        ours = objective.loss(ae.model, ae.guide, x)
        torch.manual_seed(0)
        assert ours == pytest.approx(expected().loss(ae.model, ae.guide, x), rel=1e-6) and type(objective.elbo) is expected
        assert objective.arguments.get("elbo") is None
    discrete = small_vae(prior=pa.priors.OneHot(4), posterior=pa.posteriors.OneHot())
    objective.finalize(programs.sites(poutine.trace(discrete.guide).get_trace(x), observed=False).values())
    assert type(objective.elbo) is TraceEnum_ELBO
    with pytest.raises(ValueError, match="with a differentiable_loss, such as Trace_ELBO, got RenyiELBO"):
        objective.replace(elbo=RenyiELBO())


def test_objectives_take_programs_without_an_autoencoder():
    """A Gaussian with a learned mean: functions with parameters in Pyro's store."""

    def model(x):
        mean = pyro.param("test_bounds_mean", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        mean, scale = pyro.param("test_bounds_guide", torch.tensor(0.0)), pyro.param("test_bounds_scale", torch.tensor(0.0)).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + mean) / 2, scale).to_event(1))

    x = 3.0 + 2**0.5 * torch.randn(400, 1)
    for name in ("IWAE", "DReG", "PIWAE", "Renyi", "CIWAE", "warm-up", "beta-TC"):
        pyro.get_param_store().clear()
        pa.fit(model, x, guide=guide, elbo=ALL[name](), epochs=25, batch_size=100, lr=0.1, progress=False, seed=0)
        assert pyro.param("test_bounds_mean").item() == pytest.approx(x.mean().item(), abs=0.35), name
    pyro.get_param_store().clear()


def test_draws_without_gradients_are_refused_in_training_only():
    ae = small_vae(prior=pa.priors.OneHot(4), posterior=pa.posteriors.OneHot())
    x = torch.rand(5, 64).round()
    for objective in (IWAE(5), Renyi(0.5, 5), pa.objectives.FreeBits()):
        assert math.isfinite(objective.loss(ae.model, ae.guide, x))
        with pytest.raises(ValueError, match="reparameterised draws, which the guide's site 'z' lacks"):
            objective.differentiable_loss(ae.model, ae.guide, x)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: IWAE(0), "particles.*got 0"),
        (lambda: IWAE(5, gradient="drag"), "'dreg', got 'drag'"),
        (lambda: CIWAE(5, beta=2.0), "from 0 to 1, got 2.0"),
        (lambda: Tempered(-1.0), "beta of at least 0.*got -1.0"),
        (lambda: Renyi(math.nan), "alpha as a finite number, got nan"),
        (lambda: PIWAE(3, groups=0), "PIWAE: expected groups.*got 0"),
    ],
)
def test_bad_arguments_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()
