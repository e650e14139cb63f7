"""Bounds against closed forms and brute force on linear-Gaussian models in double precision."""

import math

import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import pyroae as pa

CIWAE, IWAE, Tempered = pa.objectives.CIWAE, pa.objectives.IWAE, pa.objectives.Tempered

ALL = {
    "IWAE": lambda: IWAE(5),
    "STL": lambda: IWAE(5, gradient="stl"),
    "DReG": lambda: IWAE(5, gradient="dreg"),
    "MIWAE": lambda: IWAE(3, groups=4),
    "one particle": lambda: IWAE(1),
    "one particle, DReG": lambda: IWAE(1, gradient="dreg"),
    "CIWAE": lambda: CIWAE(5, beta=0.3),
    "Tempered": lambda: Tempered(2.0),
}


def loss_of(objective, model, x):
    return objective.differentiable_loss(model.ae.model, model.ae.guide, x)


def gradient_of(objective, model, x, of="encoder"):
    return torch.autograd.grad(loss_of(objective, model, x), getattr(model.ae, of).weight)[0].flatten()


@torch.no_grad()
@pytest.mark.parametrize("particles, groups", [(1, 1), (5, 1), (3, 4)])
def test_the_value_is_the_formula_by_brute_force(particles, groups):
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


@pytest.mark.parametrize("name", ["IWAE", "STL", "DReG", "MIWAE", "one particle"])
def test_at_the_exact_posterior_every_bound_is_log_p(name):
    model = linear_gaussian()
    assert -loss_of(ALL[name](), model, model.x).item() == pytest.approx(model.log_p.sum().item(), abs=1e-9)


def test_bounds_rise_with_particles_towards_log_p():
    model = linear_gaussian(widen=1.5)
    means = [-sum(loss_of(IWAE(k), model, model.x).item() for _ in range(60)) / 60 for k in (1, 3, 10, 100)]
    assert means == sorted(means) and means[-1] < model.log_p.sum().item()
    assert model.log_p.sum().item() - means[-1] < 0.02 * (model.log_p.sum().item() - means[0])


@pytest.mark.parametrize("name", ["STL", "DReG"])
def test_gradients_do_not_vary_at_the_exact_posterior(name):
    model = linear_gaussian()
    assert gradient_of(ALL[name](), model, model.x).norm() < 1e-9
    assert gradient_of(IWAE(5), model, model.x).norm() > 1.0


@pytest.mark.parametrize("of", ["encoder", "decoder"])
def test_dreg_has_the_plain_gradients_mean_and_less_variance(of):
    model = linear_gaussian(widen=1.15)
    x = model.x[:5]
    plain, dreg = (torch.stack([gradient_of(IWAE(4, gradient=g), model, x, of) for _ in range(1500)]) for g in ("plain", "dreg"))
    error = (plain.var(0) / 1500 + dreg.var(0) / 1500).sqrt()
    assert ((plain.mean(0) - dreg.mean(0)).abs() < 4.5 * error).all()
    assert of == "decoder" or dreg.var(0).sum() < 0.5 * plain.var(0).sum()


def test_stl_with_one_particle_has_the_elbos_exact_gradient_in_the_mean():
    model = linear_gaussian(widen=1.15)
    x = model.x[:5]
    q = model.ae.encode(x)
    residual = (x - model.b - q.mean @ model.w.T).square().sum() + 5 * (q.variance[0] @ model.w.square().T).sum()
    kl = torch.distributions.kl_divergence(q, model.ae.prior().expand([5])).sum()
    exact = torch.autograd.grad(0.5 * residual / model.noise**2 + kl, model.ae.encoder.weight)[0].flatten()
    draws = torch.stack([gradient_of(IWAE(1, gradient="stl"), model, x) for _ in range(3000)])
    assert ((draws.mean(0) - exact).abs() < 4.5 * draws.std(0) / 3000**0.5).all()


def test_a_mini_batch_is_unbiased_for_the_sum_over_all_data():
    """1,000 data in batches of 16, where Pyro's RenyiELBO exceeds the log-likelihood: here each batch's bound is N/16 times its sum."""
    x = torch.randn(1000, dtype=torch.float64) * 2**0.5
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
    assert -IWAE(8).loss(model, exact_guide, rows) == pytest.approx(1000 / 16 * log_p[:16].sum().item(), rel=1e-9)
    whole = torch.tensor([-IWAE(8).loss(model, wide_guide, torch.arange(1000)) for _ in range(40)])
    batches = torch.tensor([-IWAE(8).loss(model, wide_guide, torch.randperm(1000)[:16]) for _ in range(1500)])
    assert abs(batches.mean() - whole.mean()) < 4 * (batches.std() / 1500**0.5 + whole.std() / 40**0.5)
    assert whole.mean() < log_p.sum()


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
def test_every_bound_trains_in_fit_in_svi_and_as_a_module(name, digits):
    x, make = digits.train.x[:256], ALL[name]
    losses = pa.fit(small_vae(), x, elbo=make(), epochs=15, lr=1e-2, batch_size=64, progress=False, seed=0).loss
    assert losses[-1] < 0.9 * losses[0]
    ae = small_vae()
    svi = SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-2}), make())
    steps = [svi.step(x) for _ in range(40)]
    assert steps[-1] < 0.9 * steps[0]
    loss = make()(ae.model, ae.guide)
    assert len(list(loss.parameters())) == 8 and loss(x).requires_grad


def test_iwae_takes_guides_of_several_levels_but_not_their_score(digits):
    parts = pa.likelihoods.Bernoulli(64), pa.posteriors.Hierarchical(hidden=8), pa.nets.MLP(16), pa.nets.MLP(16)
    ae = pa.Autoencoder(pa.priors.Hierarchical(4, top=2, hidden=8), *parts)
    losses = pa.fit(ae, digits.train.x[:256], elbo=IWAE(5), epochs=10, lr=1e-2, batch_size=64, progress=False).loss
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="one latent site, got z, z2; use 'plain'"):
        IWAE(5, gradient="dreg").loss(ae.model, ae.guide, digits.train.x[:5])


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: IWAE(0), "particles.*got 0"),
        (lambda: IWAE(5, gradient="drag"), "'dreg', got 'drag'"),
        (lambda: CIWAE(5, beta=2.0), "from 0 to 1, got 2.0"),
        (lambda: Tempered(-1.0), "beta of at least 0.*got -1.0"),
    ],
)
def test_bad_arguments_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()
