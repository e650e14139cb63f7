"""Data with holes: what is missing counts for nothing, and is drawn from the exact conditional."""

import math

import pyro
import pytest
import torch
from conftest import linear_gaussian
from pyro import distributions as dist

import pyroae as pa


def with_missing(exact):
    """The linear-Gaussian model told that NaN is missing; its guide, made for complete data, is only a proposal."""
    return exact.ae.replace(likelihood=pa.likelihoods.Missing(exact.ae.likelihood), posterior=pa.posteriors.StudentT(df=4.0, scale=0.7))


def conditional(exact, row):
    """p(missing | seen) in closed form."""
    covariance = exact.w @ exact.w.T + exact.noise**2 * torch.eye(7, dtype=torch.float64)
    m, s = row.isnan(), ~row.isnan()
    gain = covariance[m][:, s] @ torch.linalg.inv(covariance[s][:, s])
    mean = exact.b[m] + gain @ (row[s] - exact.b[s])
    return dist.MultivariateNormal(mean, covariance[m][:, m] - gain @ covariance[s][:, m])


def test_missing_entries_count_for_nothing():
    exact = linear_gaussian()
    ae, x = with_missing(exact), exact.x.clone()
    x[:, [1, 4]] = torch.nan
    seen = [0, 2, 3, 5, 6]
    covariance = exact.w @ exact.w.T + exact.noise**2 * torch.eye(7, dtype=torch.float64)
    truth = dist.MultivariateNormal(exact.b[seen], covariance[seen][:, seen]).log_prob(x[:, seen])
    score = pa.log_likelihood(ae, x, particles=5000, proposal="guide")
    assert ((score.values - truth).abs() < 5 * score.errors).all() and score.mc_se < 0.05
    assert (
        score.bits_per_dim == pytest.approx(-score.mean / (5 * math.log(2))) and pa.ais(ae, x[:2], chains=2, temperatures=2).dimensions == 5
    )
    complete = pa.log_likelihood(ae, exact.x, particles=5000, proposal="guide")
    assert ((complete.values - exact.log_p).abs() < 5 * complete.errors).all()


def test_imputations_are_draws_from_the_exact_conditional():
    exact = linear_gaussian()
    ae, x = with_missing(exact), exact.x[:3].clone()
    x[0, [1, 4]], x[1, :5], x[2, 6] = torch.nan, torch.nan, torch.nan
    drawn = pa.impute(ae, x, draws=3000, particles=20000)
    assert drawn.shape == (3000, 3, 7) and torch.equal(drawn[:, ~x.isnan()], x[~x.isnan()].expand(3000, -1))
    for i, row in enumerate(x):
        truth, ours = conditional(exact, row), drawn[:, i][:, row.isnan()]
        assert torch.allclose(ours.mean(0), truth.mean, atol=0.12)
        assert torch.allclose(torch.cov(ours.T).reshape(truth.covariance_matrix.shape), truth.covariance_matrix, atol=0.25)


@pytest.mark.parametrize("mask", [False, True])
def test_training_with_holes_learns_and_fills_in(mask, grey, tmp_path):
    x = grey.train.x.clone()
    x[torch.rand_like(x) < 0.3] = torch.nan
    likelihood = pa.likelihoods.Missing(pa.likelihoods.Normal(64), mask=mask)
    ae = pa.Autoencoder(pa.priors.Normal(8), likelihood, pa.posteriors.Normal(), pa.nets.MLP(64), pa.nets.MLP(64))
    assert ae.encoder[0].in_features == 64 * (1 + mask)
    losses = pa.fit(ae, x, epochs=80, batch_size=64, lr=3e-3, progress=False, seed=0).loss
    holes, held_out = torch.rand(100, 64) < 0.3, grey.test.x[:100]
    filled = pa.impute(ae, held_out.masked_fill(holes, torch.nan), draws=10, particles=200).mean(0)
    error, by_mean = (filled - held_out)[holes].square().mean(), (grey.train.x.mean(0).expand(100, 64) - held_out)[holes].square().mean()
    assert losses[-1] < losses[0] and error < 0.8 * by_mean
    pa.save(ae, tmp_path / "model.safetensors")
    assert torch.equal(pa.load(tmp_path / "model.safetensors").reconstruct(x[:5]), ae.reconstruct(x[:5]))


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gamma", "Beta", "Poisson", "DiscretizedLogistic", "ContinuousBernoulli"])
def test_any_support_may_have_holes(likelihood):
    whole = getattr(pa.likelihoods, likelihood)(4)
    holed, h = pa.likelihoods.Missing(whole), torch.randn(6, whole.size, requires_grad=True)
    x = whole(h).sample()
    full = holed(h).log_prob(x)
    assert torch.allclose(full, whole(h).log_prob(x))
    x[:, 2] = torch.nan
    holed.check(x)
    holed(h).log_prob(x).sum().backward()
    assert h.grad.isfinite().all() and torch.equal(holed(h).log_prob(torch.full((6, 4), torch.nan)), torch.zeros(6))


def test_columns_of_a_table_may_have_holes():
    table = pa.likelihoods.Product({"a": pa.likelihoods.Missing(pa.likelihoods.Normal(1)), "b": pa.likelihoods.Poisson(1)})
    x = torch.tensor([[torch.nan, 2.0], [0.3, 1.0]] * 20)
    ae = pa.Autoencoder(pa.priors.Normal(2), table, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    losses = pa.fit(ae, x, epochs=20, lr=1e-2, progress=False).loss
    assert losses[-1] < losses[0] and not pa.impute(ae, x).isnan().any()
    with pytest.raises(ValueError, match="column 'b'.*NaN"):
        table.check(x.flip(1))


def test_data_with_holes_are_loaded_when_said_so():
    x = torch.tensor([[0.5, torch.nan], [1.0, 2.5]] * 10)
    assert pa.data.load(x, missing=True).train.x.isnan().any() and pa.data.load(x, missing=True).domain == "real"
    with pytest.raises(ValueError, match="missing=True"):
        pa.data.load(x)


def test_wrapping_what_has_no_single_entries_is_refused():
    with pytest.raises(ValueError, match="wrap its columns"):
        pa.likelihoods.Missing(pa.likelihoods.Product({"a": pa.likelihoods.Normal(1)}))


def test_pseudo_inputs_start_on_data_with_holes():
    x = torch.rand(50, 6).round()
    x[::2, 1], x[:, 4] = torch.nan, torch.nan
    vae = pa.recipes.vae(pa.data.load(torch.rand(20, 6).round()), latent_dim=2, hidden=8).replace(
        likelihood=pa.likelihoods.Missing(pa.likelihoods.Bernoulli(6)), prior=pa.priors.VampPrior(2, components=9)
    )
    vae.prior.measure(x)
    inputs = vae.prior.raw.sigmoid()
    assert vae.likelihood.bounded and inputs.isfinite().all() and torch.allclose(inputs[:, 4], torch.tensor(0.01))
    whole = ((inputs[:, 0] - 0.01).abs() < 1e-5) | ((inputs[:, 0] - 0.99).abs() < 1e-5)
    assert whole.all()


def test_a_column_that_asks_for_the_mask_has_it_shown():
    table = pa.likelihoods.Product(
        {"a": pa.likelihoods.Missing(pa.likelihoods.Normal(2, scale=1.0), mask=True), "b": pa.likelihoods.Bernoulli(1)}
    )
    vae = pa.Autoencoder(pa.priors.Normal(2), table, pa.posteriors.Normal(), pa.nets.MLP(5), pa.nets.MLP(5))
    zero, hole = torch.zeros(1, 3), torch.tensor([[torch.nan, 0.0, 0.0]])
    assert vae.encoder[0].in_features == 6 and not torch.equal(vae.encode(zero).mean, vae.encode(hole).mean)


def test_draws_that_share_a_code_differ_in_what_is_missing():
    """20 columns with noise .05 leave about one particle of the prior; the missing column has noise 1."""
    exact = linear_gaussian(d=21, noise=0.05)
    noise = torch.full((21,), 0.05, dtype=torch.float64)
    noise[-1] = 1.0
    ae = exact.ae.replace(likelihood=pa.likelihoods.Missing(pa.likelihoods.Normal(21, scale=noise.tolist()))).double()

    def prior_as_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))

    z = torch.randn(200, 3, dtype=torch.float64)
    x = ae.decode(z).sample()
    missing, x[:, -1] = x[:, -1].clone(), torch.nan
    drawn = pa.impute(ae.model, x, prior_as_guide, draws=10)[..., -1]
    assert (drawn.std(0) > 0).all() and drawn.var(0).mean().item() == pytest.approx(1.0, abs=0.1)
    inside = (drawn.min(0).values < missing) & (missing < drawn.max(0).values)
    assert inside.double().mean() > 0.75  # 9/11 for exact draws
