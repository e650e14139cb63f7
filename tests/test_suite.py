"""Decomposition, comparison, checks, representation and export, each against a closed form or another library."""

import math
import subprocess
import sys
import warnings

import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from sklearn.metrics import mutual_info_score
from torch import nn

import pyroae as pa
from pyroae.evaluation.importance import Estimate
from pyroae.evaluation.verdict import Verdict
from pyroae.evaluation.weights import Weights


@pytest.fixture
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz", reason="needs ArviZ: install the extra 'arviz'")


# --- how far to trust an estimate ---


@pytest.mark.parametrize("particles", [25, 26, 100, 1000, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 30.0])
def test_khat_is_arviz_s(particles, spread, arviz):
    if "psislw" not in vars(arviz):
        pytest.skip("ArviZ 1 rounds the number of weights in the tail down, and earlier ones round it up as we do")
    log_w = spread * torch.randn(particles, 10, dtype=torch.float64) - 1000
    stream = Weights(10, particles, torch.device("cpu"))
    for chunk in log_w.split(77):
        stream.add(chunk)
    theirs = torch.as_tensor(arviz.psislw(log_w.T.numpy().copy())[1])
    assert torch.allclose(stream.khat(), theirs, atol=1e-6, rtol=0)


def test_stated_intervals_cover_over_200_runs():
    exact = linear_gaussian(widen=1.3)
    truth = exact.log_p.mean().item()
    runs = [pa.log_likelihood(exact.ae, exact.x, particles=100, seed=seed, proposal="guide") for seed in range(200)]
    assert 180 <= sum(abs(run.mean - truth) < 1.96 * run.mc_se for run in runs) <= 198
    below = truth - sum(run.mean for run in runs) / 200
    assert below == pytest.approx(-sum(run.bias for run in runs) / 200, abs=3 * runs[0].mc_se / 200**0.5) and below > 0


def test_the_verdict_says_what_share_and_what_to_do():
    good, bad = linear_gaussian(widen=1.3), linear_gaussian(widen=0.35)
    verdict = pa.log_likelihood(good.ae, good.x, particles=500, proposal="guide").verdict
    assert verdict.state == "uncertain" and "would not show" in str(verdict) and verdict.remedy == "auto"
    score = pa.log_likelihood(bad.ae, bad.x, particles=500, proposal="guide")
    assert score.unreliable > 0.6 and f"{score.unreliable:.1%}" in str(score.verdict) and "[wrong]" in str(score)
    truth = bad.log_p.mean().item()
    assert score.verdict.low_by > 3 * score.mc_se and truth - score.mean > 0.3 * score.verdict.low_by
    assert 'proposal="auto"' in str(score.verdict) and "--proposal auto" in score.verdict.said(command_line=True)
    few = pa.log_likelihood(good.ae, good.x, particles=10, proposal="guide").verdict
    assert few.state == "uncertain" and "25 particles" in str(few) and "--particles 25" in few.said(command_line=True)
    auto = pa.log_likelihood(bad.ae, bad.x, particles=500)
    assert auto.verdict.state == "no sign of trouble" and abs(auto.mean - truth) < 4 * auto.mc_se and auto.verdict.mark == ""


@pytest.mark.parametrize("proposal", ["auto", "guide", "Laplace"])
def test_a_verdict_never_recommends_what_was_just_used(proposal):
    values = torch.zeros(3, dtype=torch.float64)
    modes = {"modes": torch.ones(3)} if proposal == "auto" else {}
    score = Estimate(values, values + 0.5, values + 3, torch.tensor([0.9, 0.2, 0.1]), 100, 7, proposal, **modes)
    assert "decoder evaluations" in str(score.verdict) and Verdict.from_dict(score.verdict.as_dict()) == score.verdict
    assert score.verdict.state == "uncertain" and ("auto" in str(score.verdict)) != (proposal == "auto")
    assert score.verdict.low_by == pytest.approx(0.5 / 3) and "[uncertain]" in str(score)


@pytest.mark.parametrize("proposal, remedy", [("prior", None), ("guide", "auto"), ("Laplace", "auto")])
def test_weights_that_look_well_say_nothing_of_modes_that_no_draw_reached(proposal, remedy):
    values = torch.zeros(3, dtype=torch.float64)
    verdict = Estimate(values, values + 0.01, values + 90, values + 0.1, 100, 7, proposal).verdict
    assert (verdict.state == "no sign of trouble") == (remedy is None) and verdict.remedy == remedy


def test_the_paired_error_holds_for_scores_by_different_proposals():
    exact = linear_gaussian(widen=1.3)
    gaps = []
    for seed in range(30):
        by_guide = pa.log_likelihood(exact.ae, exact.x, particles=50, seed=seed, proposal="guide")
        gaps.append(pa.compare(by_guide, pa.log_likelihood(exact.ae, exact.x, particles=200, seed=100 + seed)))
    spread = torch.tensor([gap.difference for gap in gaps]).std().item()
    assert 0.7 < spread / (sum(gap.se for gap in gaps) / 30) < 1.4 and 0.7 < spread / (sum(gap.mc_se for gap in gaps) / 30) < 1.4
    assert gaps[0].mark == " [uncertain]" and "[uncertain] nats/example (paired s.e." in str(gaps[0])


def test_a_confident_wrong_pixel_costs_what_it_costs():
    ae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(3), pa.posteriors.Normal(), nn.Linear(3, 4), nn.Linear(2, 3))
    with torch.no_grad():
        for parameter in ae.parameters():
            parameter.zero_()
        ae.decoder.bias.fill_(40.0)
    score = pa.log_likelihood(ae, torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), particles=50, proposal="guide")
    assert torch.allclose(score.values, torch.tensor([-40.0, -80.0], dtype=torch.float64))


MEASURE = """
import resource, sys, torch, pyroae as pa
ae = pa.Autoencoder(pa.priors.Normal(8), pa.likelihoods.Bernoulli(784), pa.posteriors.Normal(), pa.nets.MLP(64), pa.nets.MLP(64))
x = torch.rand(int(sys.argv[1]), 784).round()
pa.log_likelihood(ae, x[:64], particles=200, proposal="guide")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pa.log_likelihood(ae, x, particles=int(sys.argv[2]), proposal="guide")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
@pytest.mark.parametrize("data, particles", [(2, 10), (2, 10_000), (400, 50)])
def test_peak_memory_grows_with_neither_particles_nor_data(data, particles):
    grown = subprocess.run([sys.executable, "-c", MEASURE, str(data), str(particles)], capture_output=True, text=True, check=True)
    assert float(grown.stdout) < 40  # MiB; 10,000 particles of 2 data at once would be 60 MiB of logits alone


# --- where the nats go ---


def test_the_inference_gap_is_the_kl_to_the_posterior_and_all_of_it_amortization_here():
    exact = linear_gaussian(widen=1.3)
    found = pa.decompose(exact.ae, exact.x, particles=1000, draws=500, proposal="guide")
    gap = 3 * (0.5 * (1.3**2 - 1) - math.log(1.3))
    assert found.kl_to_posterior.mean().item() == pytest.approx(gap, abs=0.03)
    assert found.amortization.mean().item() == pytest.approx(gap, abs=0.03) and abs(found.approximation.mean().item()) < 0.01
    assert -found.distortion - found.rate == pytest.approx(found.terms.elbo.mean().item()) and "amortization" in str(found)


@pytest.mark.parametrize("judge", [pa.aggregate, pa.ais], ids=lambda judge: judge.__name__)
def test_a_mixture_of_equals_is_judged_as_what_it_is_made_of(judge, digits):
    vae, x = small_vae(), digits.test.x[:8]
    mixed = vae.replace(prior=pa.priors.GaussianMixture(4, components=3, spread=0.0))
    settings = {"chains": 2, "temperatures": 5} if judge is pa.ais else {}
    plain, mixture = (judge(ae, x, **settings) for ae in (vae, mixed))
    seen = ("values",) if judge is pa.ais else ("mutual_information", "marginal_kl")
    for name in seen:
        assert torch.as_tensor(getattr(mixture, name)).allclose(torch.as_tensor(getattr(plain, name)), atol=1e-3), name


def test_mutual_information_and_marginal_kl_of_the_aggregate_posterior():
    exact = linear_gaussian(widen=1.3)
    found = pa.aggregate(exact.ae, exact.x)
    q = exact.ae.encode(exact.x)
    torch.manual_seed(1)
    z = q.sample((2000,))  # by brute force: a matrix of densities, many draws
    own, mixture = q.log_prob(z), torch.logsumexp(q.log_prob(z[:, :, None]), -1) - math.log(40)
    assert found.mutual_information == pytest.approx((own - mixture).mean().item(), abs=0.4)
    assert found.marginal_kl == pytest.approx((mixture - exact.ae.prior().log_prob(z)).mean().item(), abs=0.4)
    many = [pa.aggregate(exact.ae, exact.x, seed=seed).mutual_information for seed in range(100)]
    assert sum(many) / 100 == pytest.approx((own - mixture).mean().item(), abs=0.08)
    apart = linear_gaussian(noise=0.01)
    spread = torch.tensor([pa.aggregate(exact.ae, exact.x, seed=seed).mutual_information for seed in range(100, 160)]).std().item()
    assert spread == pytest.approx(found.mutual_information_se, rel=0.4) and f"(s.e. {found.marginal_kl_se:.2g})" in str(found)
    assert "limit for 40 examples" in str(pa.aggregate(apart.ae, apart.x))


def test_active_units_are_those_that_depend_on_x():
    exact = linear_gaussian()
    with torch.no_grad():
        exact.ae.encoder.weight[1] = 0.0
    units = pa.active_units(exact.ae, exact.x)
    assert torch.allclose(units.variance, exact.ae.encode(exact.x).mean.var(0))
    assert units.active.tolist() == [True, False, True] and "not 1" in str(units) and units.warning is None
    with torch.no_grad():
        exact.ae.encoder.weight.zero_()
    assert "posterior collapse" in str(pa.active_units(exact.ae, exact.x))


@pytest.mark.parametrize(
    "posterior", [pa.posteriors.Flow(), pa.posteriors.Hierarchical(), pa.posteriors.TopDown()], ids=lambda p: type(p).__name__
)
def test_no_unit_is_active_where_the_encoder_says_nothing(posterior, digits):
    prior = pa.priors.Normal(5) if isinstance(posterior, pa.posteriors.Flow) else pa.priors.Hierarchical(5, top=3)
    ae = small_vae(prior=prior, posterior=posterior)
    with torch.no_grad():
        for p in ae.encoder.parameters():
            p.zero_()
    units = pa.active_units(ae, digits.test.x[:200])
    assert not units.active.any() and "posterior collapse" in str(units)


# --- comparison ---


def test_a_paired_comparison_is_the_mean_difference_and_its_error():
    exact = linear_gaussian()
    a, b = exact.ae, linear_gaussian(noise=0.9).ae
    found = pa.compare(a, b, exact.x, particles=200, proposal="guide")
    scores = [pa.log_likelihood(each, exact.x, particles=200, proposal="guide") for each in (a, b)]
    difference = scores[0].values - scores[1].values
    assert found.difference == pytest.approx(difference.mean().item()) and found.difference > 0
    assert found.se == pytest.approx(difference.std().item() / 40**0.5)
    assert found.wins == (difference > 0).double().mean().item() and pa.compare(*scores).difference == found.difference
    with pytest.raises(ValueError, match="the data x beside models"):
        pa.compare(a, b)
    with pytest.raises(ValueError, match="40 and 3 values"):
        pa.compare(scores[0], pa.log_likelihood(b, exact.x[:3], particles=10, proposal="guide"), proposal="guide")
    assert pa.compare((a.model, a.guide), a, exact.x, particles=20, proposal="guide").wins == 0.5 and isinstance(scores[0], Estimate)


# --- checks ---


@pytest.mark.parametrize("widen, said", [(1.0, "no sign of miscalibration"), (0.6, "3 too narrow"), (1.6, "3 too wide")])
def test_simulation_based_calibration_of_the_guide(widen, said):
    exact = linear_gaussian(widen=widen)
    ranks = pa.sbc(exact.ae, exact.x.repeat(20, 1))
    assert said in str(ranks) and ranks.ranks.shape == (800, 3)


def test_a_shifted_guide_is_called_shifted():
    exact = linear_gaussian()
    with torch.no_grad():
        exact.ae.encoder.bias[0] += 0.9 / exact.precision[0].sqrt()
    ranks = pa.sbc(exact.ae, exact.x.repeat(20, 1))
    assert "1 of 3 latent dimensions (1 shifted)" in str(ranks) and ranks.shift[0] < -0.15


def test_calibration_by_few_draws_has_fewer_bins():
    exact = linear_gaussian(widen=0.3)
    ranks = pa.sbc(exact.ae, exact.x.repeat(20, 1), draws=5)
    assert ranks.p_values.max() < 1e-6 and "3 too narrow" in str(ranks)


def test_a_predictive_check_passes_a_good_model_and_fails_a_bad_one():
    exact = linear_gaussian()
    good = pa.predictive_check(exact.ae, exact.x)
    assert all(0.05 < p < 0.95 for p in good.p_values.values())
    bad = pa.predictive_check(exact.ae, 3 * exact.x, statistics={"mean square": lambda x: x.square().flatten(2).mean(-1)})
    assert bad.p_values["mean square"] < 0.02 or bad.p_values["mean square"] > 0.98
    assert bad.coverage(0.9) < 0.6 < good.coverage(0.9)


def test_entries_are_calibrated_where_z_says_nothing_of_x():
    """With the prior as posterior and a decoder that ignores z, x is N(b, noise^2): the intervals hold what they say."""
    exact = linear_gaussian()
    with torch.no_grad():
        exact.ae.decoder.weight.zero_()
    x = exact.b + exact.noise * torch.randn(300, 7, dtype=torch.float64)
    check = pa.predictive_check(exact.ae, x, draws=200)
    assert check.coverage(0.5) == pytest.approx(0.5, abs=0.05) and check.coverage(0.9) == pytest.approx(0.9, abs=0.03)
    assert "90% interval" in str(check) and check.pit.shape == x.shape


@pytest.mark.parametrize("d, expected", [(1, 0.74), (3, 0.64)])
def test_coverage_is_judged_by_what_the_model_itself_would_give(d, expected):
    """x = z + noise in D dimensions sharing z in R: z has seen x, so even the true model covers more than the level says."""

    def program(scale):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
                pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, d), scale).to_event(1), obs=x)

        def guide(x):
            precision = 1 + d / scale**2
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.sum(-1) / scale**2 / precision, precision**-0.5))

        return model, guide

    x = torch.randn(2000, 1) + torch.randn(2000, d)
    model, guide = program(1.0)
    right = pa.predictive_check(model, x, guide)
    assert right.coverage(0.5) == pytest.approx(expected, abs=0.03) and abs(right.coverage_z(0.5)) < 3 and "too" not in str(right)
    model, guide = program(0.6)
    wrong = pa.predictive_check(model, x, guide)
    assert wrong.coverage_z(0.5) < -3 and "too narrow" in str(wrong)


def test_a_guide_that_is_worse_on_simulated_data_does_not_make_a_model_look_wrong():
    """x = z + noise; the guide is exact for small x and misses z where |x| > 1, so its own draws cover too little there."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 2.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        mean = 0.8 * x[..., 0]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean - (x[..., 0].abs() > 1.0) * 1.5, 0.8**0.5 + (x[..., 0].abs() > 1.0)))

    z = 2 * torch.randn(1500)
    x = (z + torch.randn(1500))[:, None]
    few = pa.predictive_check(model, x[x.abs().amax(1) < 1.0], guide)
    assert few.khat.max() < 0.7 and (few.expected_coverage(0.5) - pa.predictive_check(model, x, guide).coverage(0.5)) < 0.03
    right = pa.predictive_check(model, x, guide)
    assert abs(right.coverage_z(0.5)) < 3 and right.verdict.state == "no sign of trouble" and "[" not in str(right)


def test_a_predictive_check_by_a_guide_that_will_not_do_is_marked():
    exact = linear_gaussian(widen=0.05)
    check = pa.predictive_check(exact.ae, exact.x)
    assert check.verdict.state == "wrong" and str(check).count("[wrong]") == 6 and "proposal=" in check.verdict.said()
    fitted = pa.predictive_check(exact.ae, exact.x, proposal="auto")
    assert fitted.verdict.state == "no sign of trouble" and fitted.coverage(0.9) > check.coverage(0.9)
    ae = small_vae(posterior=pa.posteriors.Delta())
    assert pa.predictive_check(ae, torch.rand(20, 64).round(), draws=30).verdict.state == "wrong"


# --- representation ---


class Copy(nn.Module):
    """Means that are x itself, scales exp(-5)."""

    def forward(self, x):
        return torch.cat([x, torch.full_like(x, -5.0)], -1)


def copying(size):
    return pa.Autoencoder(pa.priors.Normal(size), pa.likelihoods.Normal(size, scale=1.0), pa.posteriors.Normal(), Copy(), nn.Identity())


def test_probes_see_labels_that_are_in_the_code(digits):
    found = pa.probe(copying(64), digits.train, digits.test)
    assert found.linear > 0.85 and found.neighbours > 0.85 and found.chance < 0.2 and "linear probe" in str(found)
    with pytest.raises(ValueError, match="with labels"):
        pa.probe(copying(64), digits.train.x, digits.test)


def test_codes_are_posterior_means_also_without_a_closed_form():
    exact = linear_gaussian()
    assert torch.allclose(pa.codes(exact.ae, exact.x), exact.ae.encode(exact.x).mean)
    x = torch.rand(5, 64).round()
    flow = small_vae(posterior=pa.posteriors.Flow())
    means = torch.stack([flow.encode(x).sample() for _ in range(600)]).double()
    assert ((pa.codes(flow, x) - means.mean(0)).abs() < 6 * means.std(0) / 8).all()


def test_mig_is_one_for_factors_each_in_its_own_number_and_less_where_they_are_mixed():
    factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(20, 1)
    apart, mixed = factors.float(), factors.float() @ torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    assert pa.mig(copying(2), apart, factors) == pytest.approx(1.0)
    assert pa.mig(copying(2), mixed, factors) < 0.3
    h = [mutual_info_score(a, b) for a, b in ((factors[:, 0], factors[:, 0]), (factors[:, 0], factors[:, 0] // 2))]
    doubled = torch.stack([factors[:, 0], factors[:, 0] // 2], 1).float()
    assert pa.mig(copying(2), doubled, factors[:, :1]) == pytest.approx((h[0] - h[1]) / h[0])
    with pytest.raises(ValueError, match="constant"):
        pa.mig(copying(2), apart, 0 * factors)


def test_reconstruction_error_and_denoising_gain():
    exact = linear_gaussian()
    clean = exact.ae.reconstruct(exact.x)
    assert torch.allclose(pa.reconstruction_error(exact.ae, exact.x), (clean - exact.x).square().mean(1).double())
    halving = lambda x: x + 1.0  # noqa: E731
    ae = copying(3).replace(decoder=nn.Linear(3, 3))
    with torch.no_grad():
        ae.decoder.weight.copy_(torch.eye(3)), ae.decoder.bias.fill_(-0.9)
    assert pa.denoising_gain(ae, torch.randn(9, 3), halving) == pytest.approx(20.0, abs=1e-3)


# --- export ---


def test_arviz_compares_models_as_we_do(arviz):
    exact, other = linear_gaussian(), linear_gaussian(noise=0.9)
    ours = pa.compare(exact.ae, other.ae, exact.x, particles=300, proposal="guide")
    exported = {
        name: pa.to_arviz(each.ae, exact.x, draws=60, particles=300, proposal="guide") for name, each in (("a", exact), ("b", other))
    }
    if "InferenceData" not in vars(arviz):
        pytest.skip("ArviZ 1 compares no models whose weights are all equal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = arviz.compare(exported)
    assert table.loc["b"]["elpd_diff"] == pytest.approx(40 * ours.difference, rel=1e-6)
    assert table.loc["b"]["dse"] == pytest.approx(40 * ours.se * (39 / 40) ** 0.5, rel=1e-6)


def test_exported_draws_are_of_the_exact_posterior(arviz):
    exact = linear_gaussian(widen=1.5)
    z = torch.as_tensor(pa.to_arviz(exact.ae, exact.x, draws=800, particles=2000, proposal="guide").posterior["z"].values[0])
    mean, sd = exact.ae.encode(exact.x).mean, 1 / exact.precision.sqrt()
    assert ((z.mean(0) - mean).abs() < 0.25 * sd).all() and torch.allclose(z.std(0), sd.expand(40, 3), rtol=0.2)


# --- nothing is changed ---

LOOKS = {
    "ais": lambda ae, x: pa.ais(ae, x, chains=3, temperatures=4),
    "bdmc": lambda ae, x: pa.bdmc(ae, x, chains=3, temperatures=4),
    "Laplace": lambda ae, x: pa.log_likelihood(ae, x, particles=30, proposal=pa.proposals.Laplace(steps=5)),
    "decompose": lambda ae, x: pa.decompose(ae, x, particles=30, best=pa.proposals.Optimised(steps=5), proposal="guide"),
    "aggregate": pa.aggregate,
    "active_units": pa.active_units,
    "predictive_check": pa.predictive_check,
    "sbc": pa.sbc,
    "codes": lambda ae, x: pa.codes(ae, x).sum(),
}


@pytest.mark.parametrize("name", LOOKS)
def test_evaluation_leaves_everything_as_it_was(name, digits):
    encoder = nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 8))
    ae = small_vae(corruption=pa.corruption.Masking(0.5)).replace(encoder=encoder).train()
    state, seed = {key: value.clone() for key, value in ae.state_dict().items()}, torch.get_rng_state()
    first, again = (str(LOOKS[name](ae, digits.test.x[:20])) for _ in range(2))
    assert first == again and all(module.training for module in ae.modules()) and torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(state[key], value) for key, value in ae.state_dict().items()) and all(p.grad is None for p in ae.parameters())
