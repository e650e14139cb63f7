"""Independent columns: the score that a model of a table must beat."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import pyroae as pa
from pyroae.cli import main
from pyroae.experiment.baseline import Gain, gain, log_prob

RNG = np.random.default_rng(0)
N = 400
Z = RNG.normal(size=N)
TABLE = pd.DataFrame(
    {
        "real": 5 + 2 * Z,
        "positive": np.exp(1 + 0.5 * Z),
        "count": np.r_[RNG.negative_binomial(2, 0.2, N - 1), 90],
        "binary": np.where(Z > 0.5, "yes", "no"),
        "category": RNG.choice(list("abc"), N, p=[0.5, 0.3, 0.2]),
    }
)


def expected(name, train, test):
    """log p by SciPy, of columns with so many rows that smoothing does not matter."""
    if name == "real":
        return scipy.stats.norm(train.mean(), train.std(ddof=0)).logpdf(test)
    if name == "positive":
        return scipy.stats.lognorm(np.log(train).std(ddof=0), scale=np.exp(np.log(train).mean())).logpdf(test)
    if name == "count":
        mean, variance = train.mean(), train.var(ddof=0)
        return scipy.stats.nbinom(mean**2 / (variance - mean), mean / variance).logpmf(test)
    return np.log(train.value_counts(normalize=True)[test].to_numpy())


@pytest.mark.parametrize("name", TABLE.columns)
def test_a_column_alone_is_scored_by_its_moments(name):
    found = pa.data.load(TABLE[[name]])
    assert found.schema.columns[0].kind == name
    train, test = found.train.frame()[name], found.test.frame()[name]
    assert np.allclose(log_prob(found.train, found.test.x), expected(name, train, test), atol=0.05)


def test_columns_add_up_and_holes_count_for_nothing():
    holes = TABLE.mask(RNG.random(TABLE.shape) < 0.2)
    found = pa.data.load(holes)
    alone = [pa.data.load(holes[[name]], schema=pa.data.Schema([column])) for name, column in zip(TABLE, found.schema.columns)]
    together = log_prob(found.train, found.test.x)
    assert torch.allclose(together, sum(log_prob(each.train, each.test.x) for each in alone))
    assert log_prob(found.train, torch.full((1, 5), torch.nan)).item() == 0.0


@pytest.mark.parametrize("values", [[0.0] * 39 + [1.0], np.r_[np.zeros(38), 1, 2]], ids=["one", "few"])
def test_a_value_that_training_rows_lack_costs_finitely_many_nats(values):
    found = pa.data.load(pd.DataFrame({"a": values, "b": RNG.normal(size=40)}), kinds={"a": "real"})
    assert log_prob(found.train, torch.tensor([[1.0, 0.0], [7.0, 0.0]])).isfinite().all()


def test_a_gain_is_paired_and_a_loss_comes_with_a_remedy():
    found = pa.data.load(TABLE)
    scores = log_prob(found.train, found.test.x) + 1.5
    better = gain(found.train, found.test, scores)
    assert better.gain == pytest.approx(1.5) and better.se < 1e-6
    assert "the model is 1.50 (s.e. " in str(better) and str(better).endswith(" better")
    assert "worse: it does not generalise" in str(Gain(-10.0, -3.0, 0.1)) and "generalise" not in str(Gain(-10.0, -0.1, 0.1))
    assert gain(*pa.data.load("digits").splits.values(), scores) is None


def test_the_command_says_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    TABLE.to_csv("t.csv", index=False)
    assert main(["train", "--data", "t.csv", "--epochs", "2", "--particles", "5", "--hidden", "4", "--out", "r", "--json"]) == 0
    assert main(["evaluate", "r", "--particles", "5"]) == 0
    out = capsys.readouterr().out
    assert '"gain_se"' in out and "independent    -" in out and "with independent columns; the model is" in out
