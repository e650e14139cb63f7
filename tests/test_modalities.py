"""Several modalities, some missing: products and mixtures of experts over a Product."""

import copy
import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from conftest import small_vae
from torch import nn

import pyroae as pa
from pyroae.cli import main

SUBSETS = {"both": [], "the first": [1], "the second": [0], "none": [0, 1]}  # the modalities that are missing


def product(*parts):
    return pa.likelihoods.Product({f"part {i}": part for i, part in enumerate(parts)})


def linear_gaussian():
    """x_m = W_m z + b_m + noise, the columns of each W_m orthogonal; its experts are p(z|x_m) / p(z), so that their product is exact."""
    sizes, noises = (5, 4), (0.5, 0.8)
    w = [torch.linalg.qr(torch.randn(d, 2)).Q * torch.tensor([0.7, 1.5]) for d in sizes]
    b = [torch.randn(d) for d in sizes]
    decoder = nn.Linear(2, 9)
    likelihood = product(*(pa.likelihoods.Normal(d, scale=s) for d, s in zip(sizes, noises)))
    parts = pa.priors.Normal(2), likelihood, pa.posteriors.ProductOfExperts(hidden=[]), pa.nets.Identity(), decoder
    with torch.no_grad():
        decoder.weight.copy_(torch.cat(w)), decoder.bias.copy_(torch.cat(b))
        ae = pa.Autoencoder(*parts)
        for network, wm, bm, s in zip(ae.posterior.networks, w, b, noises):
            gram = wm.square().sum(0)
            network[-1].weight.zero_(), network[-1].bias.zero_()
            network[-1].weight[:2] = wm.T / gram[:, None]
            network[-1].bias[:2] = -(wm / gram).T @ bm
            network[-1].bias[2:] = -(gram / s**2).log() / 2
    return ae.eval(), w, b, noises


def without(x, missing, lengths=(5, 4)):
    return torch.cat([part * math.nan if i in missing else part for i, part in enumerate(x.split(lengths, -1))], -1)


@pytest.mark.parametrize("name", SUBSETS)
def test_the_product_is_the_exact_posterior_of_every_subset(name):
    """Linear and Gaussian, in closed form; its importance weights are constant, so that log p(x_A) is exact."""
    ae, w, b, noises = linear_gaussian()
    x = without(ae.sample(6), SUBSETS[name])
    there = [m for m in (0, 1) if m not in SUBSETS[name]]
    precision = torch.eye(2) + sum((w[m].T @ w[m] / noises[m] ** 2 for m in there), torch.zeros(2, 2))
    seen = [part for m, part in enumerate(x.split((5, 4), -1))]
    mean = sum(((seen[m] - b[m]) @ w[m] / noises[m] ** 2 for m in there), torch.zeros(6, 2)) @ precision.inverse()
    q = ae.encode(x)
    assert torch.allclose(q.mean, mean, atol=1e-4) and torch.allclose(
        q.stddev, precision.inverse().diagonal().sqrt().expand(6, 2), atol=1e-5
    )
    if there:
        loc, wa = torch.cat([b[m] for m in there]), torch.cat([w[m] for m in there])
        noise = torch.cat([torch.full((len(b[m]),), noises[m] ** 2) for m in there])
        exact = torch.distributions.MultivariateNormal(loc, wa @ wa.T + noise.diag()).log_prob(torch.cat([seen[m] for m in there], -1))
        values = pa.log_likelihood(ae, x, particles=2, proposal="guide").values
        assert torch.allclose(values, exact.double(), atol=1e-3)


@pytest.mark.parametrize("name", SUBSETS)
def test_the_mixture_is_the_mean_of_the_experts_there_are(name):
    torch.manual_seed(1)
    lengths = (3, 2)
    likelihood = product(*(pa.likelihoods.Normal(d, scale=1.0) for d in lengths))
    parts = pa.posteriors.MixtureOfExperts(hidden=[4]), pa.nets.Identity(), pa.nets.MLP(4)
    ae = pa.Autoencoder(pa.priors.Normal(2), likelihood, *parts).eval()
    x, z = without(torch.randn(5, 5), SUBSETS[name], lengths), torch.randn(5, 2)
    q, there = ae.encode(x), [m for m in (0, 1) if m not in SUBSETS[name]]
    densities = []
    for m in there:
        loc, raw = ae.posterior.networks[m](x.split(lengths, -1)[m]).chunk(2, -1)
        densities.append(torch.distributions.Normal(loc, raw.exp()).log_prob(z).sum(-1))
    if not there:
        densities = [torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)]
    by_hand = torch.stack(densities).logsumexp(0) - math.log(len(densities))
    assert torch.allclose(q.log_prob(z), by_hand, atol=1e-5)
    draws = q.rsample((4000,))
    assert draws.requires_grad and torch.allclose(draws.mean(0), q.mean, atol=0.15)


POSTERIORS = {  # least accuracy of labels from images
    "product": (lambda: pa.posteriors.ProductOfExperts(hidden=[64]), None, 0.7),
    "mixture": (lambda: pa.posteriors.MixtureOfExperts(hidden=[64]), pa.objectives.IWAE(3), 0.7),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_images_and_labels_predict_each_other(name, digits, tmp_path):
    """A third of the examples have no image and a third no label in training."""
    posterior, bound, least = POSTERIORS[name]
    parts = {
        "posterior": posterior(),
        "encoder": pa.nets.Identity(),
        "decoder": pa.nets.MLP(64),
        "corruption": pa.corruption.Modalities(0.4),
    }
    ae = small_vae(z=8, likelihood=product(pa.likelihoods.Bernoulli(64), pa.likelihoods.Categorical(1, 10))).replace(**parts)
    x, test = (torch.cat([split.x, split.labels[:, None].float()], 1) for split in (digits.train, digits.test))
    some = x.clone()
    some[::3, :64], some[1::3, 64:] = math.nan, math.nan
    objective = pa.Penalised(pa.penalties.Emphasis("part 1", 9.0), bound)
    pa.fit(ae, some, elbo=objective, epochs=30, batch_size=64, lr=5e-3, compile="traced", progress=False, seed=0)
    no_label, no_image = without(test, [1], (64, 1)), without(test, [0], (64, 1))
    assert (ae.reconstruct(no_label)[:, 64] == test[:, 64]).float().mean() > least
    imagined, mean = ae.reconstruct(no_image)[:, :64], digits.train.x.mean(0)
    assert (imagined - test[:, :64]).square().mean() < 0.85 * (mean - test[:, :64]).square().mean()
    both, image, label = (pa.log_likelihood(ae, rows[:40], particles=100, proposal="guide").mean for rows in (test, no_label, no_image))
    assert both - label > image + 1  # log p(image|label) > log p(image): the label tells of the image
    pa.save(ae, tmp_path / "model.safetensors")
    assert torch.equal(pa.load(tmp_path / "model.safetensors").reconstruct(no_label), ae.reconstruct(no_label))


@pytest.mark.parametrize("seed", range(3))
def test_modalities_are_taken_away_anew_in_every_step_and_alike_when_traced(seed, caplog):
    """The same losses as eagerly; in a graph the missing ones are drawn anew."""
    torch.manual_seed(seed)
    likelihood = product(pa.likelihoods.Normal(3, scale=1.0), pa.likelihoods.Normal(2, scale=1.0))
    parts = {
        "posterior": pa.posteriors.ProductOfExperts(hidden=[4]),
        "encoder": pa.nets.Identity(),
        "corruption": pa.corruption.Modalities(0.5),
    }
    ae, x = small_vae(x=5, likelihood=likelihood).replace(**parts), torch.randn(6, 5)
    losses = {}
    for mode in ("eager", "traced"):
        with caplog.at_level("INFO"):
            history = pa.fit(copy.deepcopy(ae), x, epochs=8, batch_size=6, lr=1e-9, compile=mode, progress=False, seed=seed)
        losses[mode] = torch.tensor(history.loss)
    assert torch.allclose(losses["eager"], losses["traced"], atol=1e-4) and len(losses["eager"].unique()) > 6
    assert "stays eager" not in caplog.text


def test_emphasis_is_the_likelihood_of_a_part_so_many_times():
    likelihood = product(pa.likelihoods.Normal(3, scale=1.0), pa.likelihoods.Normal(2, scale=0.5))
    ae, x = small_vae(x=5, likelihood=likelihood), torch.randn(6, 5)
    terms = pa.Penalised(pa.penalties.Emphasis("part 1", 3.0)).terms(ae.model, ae.guide, x)
    with pyro.poutine.block(), torch.random.fork_rng():
        torch.manual_seed(0)
        z = ae.encode(x).rsample()
    p, penalty = ae.decode(z), pa.penalties.Emphasis("part 1", 3.0)
    assert torch.allclose(penalty(x, z, None, p), -3 * torch.distributions.Normal(p.mean[:, 3:], 0.5).log_prob(x[:, 3:]).sum(1), atol=1e-5)
    assert terms["penalty"].isfinite()


def test_columns_in_another_order():
    """The mask is in the order of x, the modalities in that of the parts."""
    likelihood = pa.likelihoods.Product({"a": pa.likelihoods.Normal(2), "b": pa.likelihoods.Normal(1)}, order=[0, 2, 1])
    ae = small_vae(x=3, likelihood=likelihood).replace(posterior=pa.posteriors.ProductOfExperts(hidden=4), encoder=pa.nets.Identity())
    x = torch.randn(1, 3)
    present = [ae.posterior.experts(ae.guide.params(torch.where(torch.arange(3) == i, math.nan, x)))[2].tolist() for i in range(3)]
    gone = ae.posterior.experts(ae.guide.params(torch.tensor([[math.nan, 1.0, math.nan]])))[2].tolist()
    assert present == [[[1.0, 1.0]], [[1.0, 0.0]], [[1.0, 1.0]]] and gone == [[0.0, 1.0]]


def two_numbers():
    likelihood = product(pa.likelihoods.Normal(3))
    return pa.Autoencoder(pa.priors.Normal(2), likelihood, pa.posteriors.ProductOfExperts(), nn.Linear(6, 2), pa.nets.MLP(4))


WRONG = {
    "no product": (lambda: small_vae(posterior=pa.posteriors.ProductOfExperts()), "expected the likelihood Product, .* got Bernoulli"),
    "nothing may be missing": (
        lambda: small_vae().replace(corruption=pa.corruption.Modalities()),
        "Modalities: expected the likelihood Product",
    ),
    "an encoder of another size": (lambda: two_numbers(), "encoder: expected 6 numbers"),
    "an unknown part": (
        lambda: pa.fit(no_missing(), torch.randn(4, 3), elbo=pa.Penalised(pa.penalties.Emphasis("label")), epochs=1, progress=False),
        "Emphasis: expected a likelihood Product with a part 'label', with parts part 0, part 1",
    ),
}


def no_missing():
    return small_vae(x=3, likelihood=product(pa.likelihoods.Normal(2), pa.likelihoods.Normal(1)))


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_what_was_expected(name):
    wrong, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        wrong()


def test_kinds_of_columns_as_modalities_by_one_command(tmp_path, monkeypatch, capsys):
    """The parts of a table's Product are its modalities; empty cells are missing."""
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    table = pd.DataFrame({"age": numbers.normal(40, 10, 60), "town": numbers.choice(["Ulm", "Jena", "Hof"], 60)})
    table.loc[::5, "town"] = None
    table.to_csv("people.csv", index=False)
    options = "--posterior ProductOfExperts --posterior.hidden 8 --encoder Identity --corruption Modalities --epochs 2 --particles 10"
    emphasis = "--objective Penalised --objective.penalty Emphasis --objective.penalty.part town"
    assert main(["train", "vae", "--data", "people.csv", *options.split(), *emphasis.split()]) == 0
    assert "run folder" in capsys.readouterr().out
