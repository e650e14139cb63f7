"""Invariants 4 (where it is due), 5 and 6: estimates equal closed forms, on one scale, and change nothing."""

import math

import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from pyro.distributions import transforms
from scipy.stats import genpareto
from torch import nn

import pyroae as pa
from pyroae.evaluation.weights import Weights, pareto_shape


@pytest.mark.parametrize("particles", [1, 10, 1000])
def test_the_exact_posterior_gives_log_p_with_no_variance(particles):
    exact = linear_gaussian()
    score = pa.log_likelihood(exact.ae, exact.x, particles=particles, proposal="guide")
    assert torch.allclose(score.values, exact.log_p, atol=1e-9)
    if particles > 1:
        assert score.mc_se < 1e-7 and torch.allclose(score.ess, torch.full_like(score.ess, particles))


def test_an_inexact_posterior_is_right_within_its_own_error():
    exact = linear_gaussian(widen=1.3)
    score = pa.log_likelihood(exact.ae, exact.x, particles=4000, proposal="guide")
    z = (score.values - exact.log_p) / score.errors
    assert z.square().mean().item() == pytest.approx(1.0, abs=0.7) and abs(z.mean().item()) < 4 / len(z) ** 0.5
    assert abs(score.mean - exact.log_p.mean().item()) < 4 * score.mc_se
    assert (score.khat < 0.7).all() and score.ess.mean() > 1000


def test_stated_errors_shrink_with_particles_and_cover():
    exact = linear_gaussian(widen=1.3)
    errors = [pa.log_likelihood(exact.ae, exact.x, particles=k, proposal="guide").mc_se for k in (100, 400, 1600)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.3) and errors[1] / errors[2] == pytest.approx(2, rel=0.3)
    runs = [pa.log_likelihood(exact.ae, exact.x, particles=200, seed=seed, proposal="guide") for seed in range(60)]
    covered = [abs(run.mean - exact.log_p.mean().item()) < 1.96 * run.mc_se for run in runs]
    assert 0.85 <= sum(covered) / len(covered) <= 1.0


def test_khat_flags_a_planted_bad_proposal():
    narrow = linear_gaussian(widen=0.35)
    assert (pa.log_likelihood(narrow.ae, narrow.x, particles=2000, proposal="guide").khat > 0.7).double().mean() > 0.8


def test_any_pyro_program_with_several_sites_and_plates():
    """z2 -> z1 -> x, each example with an inner plate; the guide is the prior, so the answer is a plain Monte-Carlo mean."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(0.5 * z2, 0.5))
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("x", dist.Normal(z1, 2.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            pyro.sample("z1", dist.Normal(0.5 * z2, 0.5))

    x = torch.randn(5, 3)
    score = pa.log_likelihood(model, x, guide=guide, particles=20000, proposal="guide")
    covariance = (0.5**2 + 0.5**2) * torch.ones(3, 3) + 4.0 * torch.eye(3)
    truth = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    assert ((score.values - truth).abs() < 5 * score.errors).all()


def test_elbo_terms_are_the_closed_form():
    exact = linear_gaussian(widen=1.3)
    terms = pa.elbo_terms(exact.ae, exact.x, particles=2000)
    q = exact.ae.encode(exact.x)
    kl = torch.distributions.kl_divergence(q, exact.ae.prior().expand(q.batch_shape))
    residual = (exact.x - exact.b - q.mean @ exact.w.T).square().sum(1) + (q.variance @ exact.w.square().T).sum(1)
    reconstruction = -0.5 * residual / exact.noise**2 - 7 * (math.log(exact.noise) + 0.5 * math.log(2 * math.pi))
    assert torch.allclose(terms.kl, kl.detach(), atol=1e-9)
    assert torch.allclose(terms.reconstruction, reconstruction.detach(), atol=0.3)
    assert terms.reconstruction.mean().item() == pytest.approx(reconstruction.mean().item(), abs=0.02)


def test_log_p_is_at_least_the_elbo_and_the_gap_is_the_kl_to_the_posterior():
    exact = linear_gaussian(widen=1.3)
    gap = exact.log_p.mean() - pa.elbo_terms(exact.ae, exact.x, particles=5000).elbo.mean()
    ratio = torch.tensor(1.3)
    assert gap.item() == pytest.approx(3 * (0.5 * (ratio**2 - 1) - ratio.log()).item(), abs=0.02)


# --- one scale ---


@pytest.mark.parametrize("batch_size", [16, 100, 1437])
def test_training_validation_and_report_agree_on_nats_per_example(batch_size, digits):
    ae = small_vae()
    frozen = lambda parameters: torch.optim.SGD(parameters, lr=1e-30)  # noqa: E731
    history = pa.fit(ae, digits.train, validation=digits.train, optimizer=frozen, epochs=1, batch_size=batch_size, progress=False)
    terms = pa.elbo_terms(ae, digits.train.x, particles=20)
    assert history.loss[0] == pytest.approx(-terms.elbo.mean().item(), abs=0.05)
    assert history["validation_loss"][0] == pytest.approx(-terms.elbo.mean().item(), abs=0.05)


def test_bits_per_dim():
    ae = small_vae()
    with torch.no_grad():
        for p in ae.parameters():
            p.zero_()  # every pixel a fair coin: one bit each, whatever z; the posterior is the prior
    assert pa.log_likelihood(ae, torch.rand(9, 64).round(), particles=30, proposal="guide").bits_per_dim == pytest.approx(1.0, abs=1e-6)


# --- evaluation changes nothing ---


@pytest.mark.parametrize(
    "judge", [lambda ae, x: pa.log_likelihood(ae, x, particles=50, proposal="guide"), pa.elbo_terms], ids=["log_likelihood", "elbo_terms"]
)
def test_evaluation_leaves_everything_as_it_was(judge, digits):
    encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 8))
    ae = small_vae(corruption=pa.corruption.Masking(0.5)).replace(encoder=encoder).train()
    ae.decoder.eval()
    modes = [module.training for module in ae.modules()]
    state = {name: value.clone() for name, value in ae.state_dict().items()}
    seed, store = torch.get_rng_state(), set(pyro.get_param_store().keys())
    first = judge(ae, digits.test.x[:20])
    assert [module.training for module in ae.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in ae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seed) and set(pyro.get_param_store().keys()) == store
    assert all(p.grad is None for p in ae.parameters())
    assert str(judge(ae, digits.test.x[:20])) == str(first)


def test_the_encoder_runs_once_for_an_example(digits):
    ae, rows = small_vae(), []
    ae.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    pa.log_likelihood(ae, digits.test.x, particles=5000, proposal="guide")
    assert sum(rows) == len(digits.test)


def test_memory_does_not_grow_with_particles(digits):
    """The largest tensor that the decoder sees has as many rows for 100,000 particles as for 10,000."""
    ae, rows = small_vae(), []
    ae.decoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    largest = []
    for particles in (10_000, 100_000):
        rows.clear()
        assert pa.log_likelihood(ae, digits.test.x[:2], particles=particles, proposal="guide").particles == particles
        assert sum(rows) == 2 * particles + 2  # and 2 to look at the program
        largest.append(max(rows))
    assert largest[0] == pytest.approx(largest[1], rel=0.01) or max(largest) <= 64e6 / (32 * 64)


@pytest.mark.parametrize("proposal", ["guide", "auto"])
@pytest.mark.parametrize("particles, at_once", [(1, 8192), (10, 819), (24, 341)])
def test_few_particles_take_many_examples_at_once(particles, at_once, proposal):
    """A call of the networks takes some 8,192 draws, whatever their number for each example: its fixed cost counts for little."""
    ae, encoded, decoded = small_vae(x=4, z=2), [], []
    ae.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
    ae.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(len(inputs[0])))
    n = 20_000
    assert pa.log_likelihood(ae, torch.rand(n, 4).round(), particles=particles, proposal=proposal).values.isfinite().all()
    blocks = math.ceil(n / at_once)
    assert len(encoded) == blocks and sum(encoded) == n
    assert len(decoded) <= 2 * blocks and sum(decoded) == n * (particles + 1)  # once more to look at the program


# --- the stream of weights ---


@pytest.mark.parametrize("chunks", [1, 7])
def test_weights_in_a_stream_are_weights_at_once(chunks):
    log_w = 3 * torch.randn(700, 5, dtype=torch.float64) - 1000
    stream = Weights(5, 700, torch.device("cpu"))
    for chunk in log_w.split(700 // chunks):
        stream.add(chunk)
    w = (log_w - log_w.amax(0)).exp()
    assert torch.allclose(stream.log_mean(), w.mean(0).log() + log_w.amax(0))
    assert torch.allclose(stream.ess(), w.sum(0) ** 2 / w.square().sum(0))
    assert torch.allclose(stream.standard_error(), w.std(0) / w.mean(0) / 700**0.5)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.5])
def test_pareto_shape_finds_the_shape(shape):
    x = torch.from_numpy(genpareto(shape).rvs((4000, 20), random_state=0)).sort(0).values
    assert pareto_shape(x).mean().item() == pytest.approx(shape, abs=0.03)


def test_khat_where_there_is_no_tail_or_too_little_to_see_one():
    constant = Weights(1, 100, torch.device("cpu"))
    constant.add(torch.zeros(100, 1, dtype=torch.float64))
    few = Weights(1, 20, torch.device("cpu"))
    few.add(torch.randn(20, 1, dtype=torch.float64))
    extreme = Weights(1, 100, torch.device("cpu"))
    extreme.add(torch.linspace(-1e5, 0, 100, dtype=torch.float64)[:, None])
    assert constant.khat().item() == 0.0 and few.khat().isnan().item() and extreme.khat().item() == math.inf


def test_scales_do_not_count_and_masks_do():
    from pyro import poutine

    exact = linear_gaussian()
    halved = pa.log_likelihood(
        poutine.scale(exact.ae.model, 0.5), exact.x, guide=poutine.scale(exact.ae.guide, 0.5), particles=10, proposal="guide"
    )
    assert torch.allclose(halved.values, exact.log_p, atol=1e-9)
    mask = torch.arange(40) < 20
    terms = pa.elbo_terms(poutine.mask(exact.ae.model, mask), exact.x, guide=poutine.mask(exact.ae.guide, mask))
    assert (terms.kl[20:] == 0).all() and (terms.kl[:20] > 0).all()


def test_khat_takes_rounding_for_no_tail():
    """In float32 the exact posterior's weights differ by rounding alone."""
    exact = linear_gaussian()
    score = pa.log_likelihood(exact.ae.float(), exact.x.float(), particles=1000, proposal="guide")
    assert (score.khat == 0).all() and (score.ess > 999).all()


def test_khat_sees_a_tail_however_large_the_log_weights_are():
    log_w = 15 * torch.randn(5000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for shift in (0.0, 1e6):
        weights = Weights(3, 5000, torch.device("cpu"))
        weights.add(log_w - shift)
        found.append(weights.khat())
    assert found[0].min() > 2 and torch.allclose(*found, atol=1e-3)


def test_squared_error_is_of_the_entries_that_were_seen_and_of_means_that_exist():
    x = torch.rand(30, 6)
    ae = small_vae(likelihood=pa.likelihoods.Missing(pa.likelihoods.Normal(6)))
    holes = x.masked_fill(torch.rand(30, 6) < 0.3, math.nan)
    holes[:, 0] = x[:, 0]
    left = (ae.reconstruct(holes) - holes).double().square()
    wanted = torch.stack([row[~row.isnan()].mean() for row in left])
    assert torch.allclose(pa.reconstruction_error(ae, holes), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="without missing entries"):
        pa.predictive_check(ae, holes)
    classes = small_vae(likelihood=pa.likelihoods.Categorical(6, categories=3))
    with pytest.raises(ValueError, match="no finite mean"):
        pa.reconstruction_error(classes, torch.randint(3, (30, 6)).float())


def test_modules_that_a_function_only_reaches_are_judged_in_evaluation_mode():
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            flat = net(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            pyro.sample("x", dist.Normal(flat, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x, before = torch.randn(20, 6), net[1].running_mean.clone()
    first, second = (pa.log_likelihood(model, x, guide, particles=500, seed=s, proposal="guide") for s in (0, 1))
    assert torch.equal(net[1].running_mean, before) and all(module.training for module in net)
    assert abs(first.mean - second.mean) < 5 * (first.mc_se + second.mc_se)
    z = torch.randn(20000, 2)
    net.eval()
    truth = dist.Normal(net(z), 1.0).to_event(1).log_prob(x[:, None]).logsumexp(1) - math.log(len(z))
    assert (first.values - truth).abs().max() < 0.3


def test_codes_and_data_of_one_number_each():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    x = torch.randn(30)
    assert torch.allclose(pa.codes(model, x, guide)[:, 0], 0.8 * x.double()) and pa.codes(model, x, guide).shape == (30, 1)
    assert pa.active_units(model, x, guide).active.tolist() == [True]
    assert torch.allclose(pa.reconstruction_error(model, x, guide), (0.2 * x).double().square())
    assert pa.predictive_check(model, x, guide, draws=20).observed["mean"] == pytest.approx(x.mean().item(), abs=1e-6)


def test_the_mean_code_of_a_flow_is_that_of_its_draws():
    ae = small_vae(posterior=pa.posteriors.Flow(layers=3))
    with torch.no_grad():
        for p in ae.guide.parameters():
            p.add_(0.5 * torch.randn_like(p))
    x = torch.rand(3, 64).round()
    q = ae.encode(x)
    draws, middle = q.sample((4000,)), q.mean.detach()
    near = (pa.codes(ae, x) - draws.mean(0)).abs() < 5 * draws.std(0) / 8
    assert near.all() and ((middle - draws.mean(0)).abs() > 5 * draws.std(0) / 4000**0.5).any()


class Conditional(nn.Module):
    """A guide by Pyro's conditional flow: the function of its context holds what the encoder gives for each block of examples."""

    def __init__(self, make):
        super().__init__()
        self.encoder, self.flow = nn.Linear(3, 3), make(3)

    def forward(self, x):
        pyro.module("conditional", self)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.ConditionalTransformedDistribution(base.expand([len(x)]), [self.flow]).condition(self.encoder(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda context: transforms.conditional_affine_coupling(2, context, hidden_dims=[4]),
        lambda context: transforms.conditional_affine_autoregressive(2, context, hidden_dims=[4]),
        lambda context: transforms.conditional_matrix_exponential(2, context, hidden_dims=[4]),
        lambda context: transforms.conditional_householder(2, context, hidden_dims=[4]),
    ],
    ids=["coupling", "autoregressive", "matrix exponential", "householder"],
)
def test_a_conditional_flow_is_that_of_each_block(make):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand(x.shape).to_event(1), obs=x)

    torch.manual_seed(0)
    guide, x = Conditional(make), 3 * torch.randn(200, 3)
    found = [
        pa.log_likelihood(model, x, guide=guide, particles=20000, proposal="guide", compile=mode, seed=1) for mode in ("eager", "traced")
    ]
    assert torch.allclose(found[0].values, found[1].values, atol=1e-4)


def test_a_points_remedy_is_one_that_works():
    model = linear_gaussian().ae.model

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 3).double(), event_dim=1))

    with pytest.raises(ValueError, match='proposal="auto" .25 particles or more'):
        pa.log_likelihood(model, linear_gaussian().x, guide=guide, particles=10)
    assert pa.log_likelihood(model, linear_gaussian().x, guide=guide, particles=25).values.isfinite().all()
