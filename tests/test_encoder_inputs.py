"""Inputs: what the encoder sees is not what is generated, q(z|u) and p(x|z)."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_vae
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam

import pyroae as pa
from pyroae.cli import main

PLAIN = {
    "vae": lambda data: pa.recipes.vae(data, latent_dim=3, hidden=16),
    "conditional": lambda data: pa.recipes.conditional(data, latent_dim=3, hidden=16),
    "autoencoder": lambda data: pa.recipes.autoencoder(data, latent_dim=3, hidden=16),
    "denoising": lambda data: pa.recipes.denoising(data, latent_dim=3, hidden=16),
    "contractive": lambda data: pa.recipes.contractive(data, latent_dim=3),
    "VampPrior": lambda data: pa.recipes.vae(data, latent_dim=3, hidden=16).replace(prior=pa.priors.VampPrior(3, components=4)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_inputs_that_equal_x_give_the_plain_model_to_the_bit(name, digits):
    x, y = digits.train.x[:300], digits.train.labels[:300]
    results = []
    for inputs in (None, x):
        data = pa.data.load((x, y), inputs=inputs)
        torch.manual_seed(0)
        ae = PLAIN[name](data)
        assert (ae.inputs is None) == (inputs is None)
        history = pa.fit(ae, data.train, epochs=3, batch_size=50, validation=data.test, progress=False, seed=0)
        terms, codes = pa.elbo_terms(ae, data.test), pa.codes(ae, data.test)
        results.append((history.loss, history["validation_loss"], terms.elbo, codes, ae.latent_mean(data.test), ae.reconstruct(data.test)))
    for plain, other in zip(*results):
        assert plain == other if isinstance(plain, list) else torch.equal(plain, other)


@pytest.fixture(scope="module")
def trained():
    """u of 3 numbers, x = A u + noise of 6 numbers."""
    u = torch.randn(1000, 3)
    x = u @ torch.randn(3, 6) + 0.3 * torch.randn(1000, 6)
    data = pa.data.load(x, inputs=u)
    ae = pa.recipes.vae(data, latent_dim=3, hidden=32)
    pa.fit(ae, data.train, epochs=30, lr=1e-2, batch_size=64, progress=False, seed=0)
    return ae, data


def test_x_is_predicted_from_inputs(trained, tmp_path):
    ae, data = trained
    x, u = data.test.x, data.test.inputs.x
    assert u.shape == (200, 3) and pa.codes(ae, data.test).shape == (200, 3)
    residual, by_mean = (ae.reconstruct(u) - x).square().mean(), x.var(0).mean()
    assert residual < 0.2 * by_mean
    shuffled = pa.elbo_terms(ae, (x, u.roll(1, 0))).elbo.mean()
    assert pa.elbo_terms(ae, data.test).elbo.mean() > shuffled + 2
    score = pa.log_likelihood(ae, data.test, particles=50, proposal="guide")
    assert torch.equal(score.values, pa.log_likelihood(ae, (x, u), particles=50, proposal="guide").values)
    pa.save(ae, tmp_path / "model.safetensors")
    for other in (copy.deepcopy(ae), ae.replace(), pa.load(tmp_path / "model.safetensors")):
        assert torch.equal(other.reconstruct(u), ae.reconstruct(u)) and torch.equal(other.encode(u).mean, ae.encode((x, u)).mean)
    assert ae.sample(7).shape == (7, 6) and Predictive(ae.model, num_samples=3)(None, n=2)["x"].shape == (3, 2, 6)
    svi = SVI(ae.model, ae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    torch.manual_seed(0)
    by_place = svi.evaluate_loss(x, u)
    torch.manual_seed(0)
    assert svi.evaluate_loss(x, u=u) == by_place
    assert pa.impute(ae.with_missing(), (x.masked_fill(x > 1, torch.nan), u), draws=2, particles=5).shape == (2, *x.shape)


def test_shapes_of_inputs_and_x_are_independent():
    """An image of one channel to a spectrum, with labels beside."""
    ae = pa.Autoencoder(
        pa.priors.Normal(3),
        pa.likelihoods.Normal(20),
        pa.posteriors.Normal(),
        pa.nets.Conv([4]),
        pa.nets.MLP(8),
        condition=pa.conditions.Labels(2),
        inputs=pa.likelihoods.Bernoulli((1, 8, 8)),
    )
    x, y, u = torch.randn(6, 20), torch.arange(6) % 2, torch.rand(6, 1, 8, 8).round()
    pa.fit(ae, (x, y, u), epochs=1, progress=False)
    assert ae.encoder[2].in_channels == 3 and ae.reconstruct(u, y).shape == (6, 20)
    assert torch.equal(ae.reconstruct((x, y, u)), ae.reconstruct(u, y))
    assert pa.log_likelihood(ae, (x, y, u), particles=5, proposal="guide").values.shape == (6,)


def test_gradients_of_the_contractive_penalty_are_with_respect_to_inputs():
    ae = small_vae(x=5, inputs=pa.likelihoods.Normal(3), likelihood=pa.likelihoods.Normal(5), posterior=pa.posteriors.Delta())
    x, u = torch.randn(4, 5), torch.randn(4, 3)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda row: ae.encode(row[None]).mean[0], row) for row in u])
    norms = pa.jacobian(ae, (x, u)).norms
    assert torch.allclose(norms, jacobian.double().square().sum((1, 2)).sqrt(), atol=1e-5)
    penalised, plain = (pa.Penalised(pa.penalties.Contractive(weight)).loss(ae.model, ae.guide, x, u) for weight in (1.0, 0.0))
    assert penalised - plain == pytest.approx(jacobian.square().sum().item(), rel=1e-4)


def people(n=400):
    rng = np.random.default_rng(0)
    age, town = rng.normal(40, 12, n), rng.choice(["Bonn", "Köln"], n)
    income = 1000 + 50 * age + 800 * (town == "Bonn") + rng.normal(0, 100, n)
    return pd.DataFrame({"age": age, "town": town, "income": income, "taxes": 0.3 * income + rng.normal(0, 30, n)})


def test_columns_of_a_table_are_inputs():
    frame = people()
    data = pa.data.load(frame, inputs=["age", "town"])
    assert data.schema.names == ["income", "taxes"] and data.schema.inputs.names == ["age", "town"]
    assert "what the encoder sees" in data.table and "from inputs of (2,) numbers" in repr(data)
    ae = pa.recipes.vae(data, latent_dim=2, hidden=16)
    assert ae.inputs.names == ["age", "town"]
    pa.fit(ae, data.train, epochs=60, lr=5e-3, progress=False, seed=0)
    predicted = ae.reconstruct(frame[["town", "age"]])
    assert list(predicted) == ["income", "taxes"] and np.corrcoef(predicted.income, frame.income)[0, 1] > 0.9
    assert pa.log_likelihood(ae, frame[:30], particles=20, proposal="guide").values.isfinite().all()


def archive(path):
    rng = np.random.default_rng(0)
    shapes = {"train": (200, 6), "train_inputs": (200, 3), "test": (50, 6), "test_inputs": (50, 3)}
    np.savez(path, **{name: rng.normal(size=shape) for name, shape in shapes.items()})


WAYS = {
    "columns": lambda folder: (people().to_csv(folder / "p.csv", index=False), ["--data", "p.csv", "--inputs", "age,town"])[1],
    "two files": lambda folder: (
        np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(200, 6))),
        np.save(folder / "u.npy", np.random.default_rng(1).normal(size=(200, 3))),
        ["--data", "x.npy", "--inputs", "u.npy"],
    )[2],
    "one archive": lambda folder: (archive(folder / "both.npz"), ["--data", "both.npz"])[1],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_with_inputs(way, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = WAYS[way](tmp_path)
    assert main(["train", "vae", *data, "--epochs", "2", "--out", "run", "--particles", "10", "--latent_dim", "2", "--hidden", "8"]) == 0
    assert "from inputs of" in capsys.readouterr().out
    assert main(["evaluate", "run", "--particles", "10"]) == 0
    ae = pa.load("run/model.safetensors")
    assert ae.inputs is not None and np.isfinite(json.loads((tmp_path / "run" / "evaluation-10.json").read_text())["log_likelihood"])
    source = {"columns": "p.csv", "two files": "u.npy", "one archive": "both.npz"}[way]
    if way != "one archive":
        assert main(["encode", "run", "--data", source, "--out", "z.csv"]) == 0
        assert len(pd.read_csv("z.csv")) == (400 if way == "columns" else 200)
    assert main(["sample", "run", "--n", "3"]) == 0


def test_rows_that_differ_in_their_inputs_alone_keep_their_splits(tmp_path):
    from pyroae.data import record

    x, u = torch.zeros(50, 2), torch.arange(50.0)[:, None]
    data = pa.data.load(x + 1, inputs=u)
    record.save(tmp_path, data, "x.npy")
    restored = record.restored(tmp_path, data, "test", ("train", "test"))
    assert torch.equal(restored.train.inputs.x, data.train.inputs.x) and torch.equal(restored.test.inputs.x, data.test.inputs.x)


X, U = torch.rand(8, 64).round(), torch.rand(8, 3)
SEES = {"inputs": pa.likelihoods.Normal(3)}
WRONG = {
    "no inputs": (lambda: pa.fit(small_vae(**SEES), X), r"encoder sees inputs u instead of x, but the data have none; .*\(x, u\)"),
    "no inputs beside labels": (
        lambda: pa.fit(small_vae(**SEES, condition=pa.conditions.Labels(8)), (X, torch.arange(8))),
        r"tuple \(x, y, u\)",
    ),
    "another shape": (lambda: small_vae(**SEES).encode(X), r"expected x of shape \(B, 3\)"),
    "outside the support": (lambda: pa.fit(small_vae(inputs=pa.likelihoods.Bernoulli(3)), (X, U)), "inputs: Bernoulli"),
    "other rows": (lambda: pa.data.load(X, inputs=U[:5]), "a row for each of 8 rows of x, got 5"),
    "too few rows": (lambda: pa.fit(small_vae(**SEES), (X, U[:5])), "x and u with the same number of rows"),
    "too many columns": (lambda: pa.fit(small_vae(**SEES), (X, U, U)), "expected x and inputs u, got 3 columns"),
    "no part": (lambda: small_vae(inputs=3), r"inputs: expected a part such as pa.likelihoods.Normal\(64\), got 3"),
    "no shape": (lambda: small_vae(inputs=pa.likelihoods.Normal()), "inputs Normal: expected the shape"),
    "no column": (lambda: pa.data.load(people(), inputs="aeg"), "inputs: there is no column 'aeg'"),
    "columns of an array": (lambda: pa.data.load(X, inputs="age"), "inputs is for tables"),
    "a data set by name": (lambda: pa.data.load("digits", inputs=U), "splits of its own"),
    "no file": (lambda: pa.data.load(X, inputs="nowhere.npy"), "no file nowhere.npy"),
    "calibration": (lambda: pa.sbc(small_vae(**SEES), (X, U)), "sees inputs"),
    "scikit-learn": (lambda: pa.sklearn.Estimator(small_vae(**SEES)).fit(X.numpy()), "has inputs"),
    "the guide alone": (lambda: small_vae(**SEES).guide(X), "last argument; got none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_what_was_expected(name):
    wrong, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        wrong()
