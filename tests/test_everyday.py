"""Data train as they come: in any units, wide or narrow, from the files that scikit-learn ships."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch

import pyroae as pa

X = np.random.default_rng(0).normal(size=(60, 5)) @ np.random.default_rng(1).normal(size=(5, 5))


def trained(x, **options):
    torch.manual_seed(0)
    vae = pa.recipes.vae(x, latent_dim=2, hidden=8)
    return pa.fit(vae, x, epochs=20, batch_size=30, lr=0.01, seed=0, progress=False, compile="eager", **options).loss


@pytest.mark.parametrize("scale", [1e-8, 100.0, 1e12])
def test_units_change_the_loss_by_a_constant_and_nothing_else(scale):
    assert trained(scale * X) == pytest.approx([loss + 5 * math.log(scale) for loss in trained(X)], abs=1e-2)


@pytest.mark.parametrize("scale", [1e4, 1e10])
def test_a_range_that_no_network_can_take_is_named(scale):
    normal = pa.likelihoods.Normal(5)
    ae = pa.Autoencoder(pa.priors.Normal(2), normal, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    with pytest.raises(
        ValueError, match=r"entry \d of x ranges from .* \(standard deviation .*standardise it.*--likelihood Standardised"
    ) as raised:
        pa.fit(ae, torch.from_numpy(scale * X).float(), epochs=200, progress=False)
    assert "lower lr" not in str(raised.value)


def test_log_expressions_of_twenty_thousand_genes_train_at_the_default_rate():
    rng = np.random.default_rng(0)
    expressions = np.log1p(rng.negative_binomial(0.5, 0.02, (60, 20_000)))
    losses = pa.fit(pa.recipes.vae(expressions), expressions, epochs=4, seed=0, progress=False, compile="eager").loss
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_the_index_of_a_parquet_file_is_no_column(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra pyroae[parquet] is not installed")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=40), "when": pd.date_range("2020-01-01", periods=40), "code": ["1", "2"] * 20})
    for index in ([f"row {i}" for i in range(40)], rng.permutation(40)):
        frame.set_index(pd.Index(index)).to_parquet(tmp_path / "t.parquet")
        found = pa.data.load(tmp_path / "t.parquet")
        assert [(column.name, column.kind) for column in found.schema.columns] == [("size", "real"), ("code", "binary")]
        assert all(name in found.table for name in ("__index_level_0__  left out", "when               left out"))


SHIPPED = {  # file of scikit-learn -> rows, columns of x, classes
    "breast_cancer.csv": (569, 30, ("malignant", "benign")),
    "diabetes_data_raw.csv.gz": (442, 10, None),
    "diabetes_target.csv.gz": (442, 1, None),
    "digits.csv.gz": (1797, 64, tuple(range(10))),
    "iris.csv": (150, 4, ("setosa", "versicolor", "virginica")),
    "linnerud_exercise.csv": (20, 3, None),
    "linnerud_physiological.csv": (20, 3, None),
    "wine_data.csv": (178, 13, ("class_0", "class_1", "class_2")),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_files_of_scikit_learn(name):
    rows, columns, classes = SHIPPED[name]
    found = pa.data.load(Path(sklearn.datasets.__file__).parent / "data" / name)
    assert (len(found.train) + len(found.test), len(found.schema.columns)) == (rows, columns)
    assert (found.schema.classes and sorted(found.schema.classes)) == (classes and sorted(classes))
    assert not found.train.x.isnan().any() and (found.train.labels is None) == (classes is None)
