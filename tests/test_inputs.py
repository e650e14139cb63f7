"""Data are taken in every form that people have them in, wherever data go in, with the same result."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from conftest import small_vae
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyroae as pa

X = (torch.rand(40, 64, generator=torch.Generator().manual_seed(1)) < 0.4).float()
Y = torch.arange(40) % 3


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], int(Y[i])


class Pictures(Pairs):
    def __getitem__(self, i):
        return Image.new("L", (8, 8)), 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


FORMS = {
    "a tensor": X,
    "float64": X.double(),
    "float16": X.half(),
    "bfloat16": X.bfloat16(),
    "int64": X.long(),
    "uint8": X.byte(),
    "bool": X.bool(),
    "a tensor with gradients": X.clone().requires_grad_(),
    "a sparse tensor": X.to_sparse(),
    "a NumPy array": X.numpy(),
    "NumPy's float64": X.double().numpy(),
    "NumPy's int16": X.short().numpy(),
    "NumPy's big-endian": X.numpy().astype(">f8"),
    "a masked array": np.ma.masked_array(X.numpy(), mask=False),
    "a sparse matrix": scipy.sparse.csr_matrix(X.numpy()),
    "a transposed array": X.numpy().T.copy().T,
    "a tuple with labels": (X, Y),
    "a tuple of arrays": (X.numpy(), Y.numpy()),
    "a TensorDataset": TensorDataset(X),
    "a TensorDataset with labels": TensorDataset(X, Y),
    "a Dataset of pairs": Pairs(),
    "a DataLoader": DataLoader(TensorDataset(X), 16),
    "a DataLoader with labels": DataLoader(Pairs(), 16),
    "a shuffled DataLoader": DataLoader(TensorDataset(X), 16, shuffle=True),  # scored in the data's order
    "an IterableDataset": DataLoader(Stream(), 16),
}
ASKED = {
    "log_likelihood": lambda ae, x: pa.log_likelihood(ae, x, particles=5).values,
    "elbo_terms": lambda ae, x: pa.elbo_terms(ae, x).elbo,
    "codes": lambda ae, x: pa.codes(ae, x),
    "encode": lambda ae, x: ae.encode(x).mean,
    "reconstruct": lambda ae, x: ae.reconstruct(x),
    "impute": lambda ae, x: pa.impute(ae, x),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_what_a_tensor_gives(form):
    ae = small_vae(likelihood=pa.likelihoods.Missing(pa.likelihoods.Bernoulli(64)))
    for name, ask in ASKED.items():
        assert torch.equal(ask(ae, FORMS[form]), ask(ae, X)), name


@pytest.mark.parametrize("form", [form for form in FORMS if "Dataset" not in form and "DataLoader" not in form])
def test_every_form_trains_as_a_tensor_does(form):
    ends = []
    for data in (FORMS[form], X):
        torch.manual_seed(0)
        ae = small_vae()
        pa.fit(ae, data, epochs=1, batch_size=40, lr=0.01, seed=0, progress=False, compile="eager")
        ends.append([p.detach() for p in ae.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("form", [form for form in FORMS if "Data" in form and form != "an IterableDataset"])
def test_datasets_and_loaders_train(form):
    assert np.isfinite(pa.fit(small_vae(), FORMS[form], epochs=2, batch_size=16, progress=False).loss).all()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "uint8"])  # which says that it is grey levels
def test_every_form_states_its_likelihood(form):
    assert repr(pa.recipes.likelihood_of(FORMS[form])) in ("Bernoulli(event_shape=(64,))", "Missing(Bernoulli(event_shape=(64,)))")


def test_recipes_and_data_sets_are_made_from_loaders_and_files(tmp_path):
    assert type(pa.recipes.conditional(DataLoader(Pairs(), 7), latent_dim=2, hidden=4).condition).__name__ == "Labels"
    found = pa.data.load(TensorDataset(X, Y))
    assert (len(found.train), len(found.test)) == (32, 8) and len(found.train.labels) == 32
    np.save(tmp_path / "x.npy", X.numpy())
    assert pa.recipes.vae(tmp_path / "x.npy").likelihood.event_shape == (64,)
    assert pa.data.load(tmp_path / "x.npy", labels=Y.numpy()).train.labels.shape == (32,)
    with pytest.raises(ValueError, match="labels is for tables, whose columns have names"):
        pa.data.load(tmp_path / "x.npy", labels="kind")


def test_pictures_take_tables():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
    vae = pa.recipes.vae(frame, latent_dim=2, hidden=4)
    assert "40" in pa.plots.latent(vae, frame, np.resize(["x", "y"], 40)).get_title()
    assert len(pa.plots.aggregate(vae, frame).get_xticks()) == 2
    pa.plots.reconstructions(vae, frame), pa.plots.interpolation(vae, frame)


@pytest.mark.parametrize("wrapped", [lambda x: x, TensorDataset], ids=["tensor", "Dataset"])
def test_batch_normalisation_meets_no_batch_of_one_row(wrapped):
    encoder = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    ae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(64), pa.posteriors.Normal(), encoder, pa.nets.MLP(8))
    history = pa.fit(ae, wrapped(torch.rand(21, 64).round()), epochs=3, batch_size=10, progress=False)
    assert np.isfinite(history.loss).all() and encoder[1].num_batches_tracked >= 6


def test_labels_come_along():
    labelled = small_vae(condition=pa.conditions.Labels(3))
    expected = pa.log_likelihood(labelled, (X, Y), particles=5).values
    frame = pd.DataFrame(X.numpy().astype(int), columns=[f"x{i}" for i in range(64)]).assign(kind=np.array(["a", "b", "c"])[Y])
    split = pa.data.load(frame, labels="kind")
    for data in ((X.numpy(), Y.numpy()), TensorDataset(X, Y), DataLoader(Pairs(), 7), (X.double(), Y.int()), (X, Y.tolist())):
        assert torch.equal(pa.log_likelihood(labelled, data, particles=5).values, expected)
    labelled.model.schema = split.schema
    assert torch.equal(pa.log_likelihood(labelled, frame, particles=5).values, expected)


def test_a_frame_comes_back_as_a_frame():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(40, 9, 30), "town": ["Ulm", "Bonn", "Köln"] * 10}, index=[f"p{i}" for i in range(30)])
    holes = frame.copy()
    holes.loc["p3", "age"], holes.loc["p4", "town"] = np.nan, None
    vae = pa.recipes.vae(holes, latent_dim=2, hidden=4)
    shown, x = vae.reconstruct(holes[["town", "age"]]), pa.data.inputs.read(holes, pa.data.inputs.wanted_by(vae.model)).x
    assert list(shown) == ["age", "town"] and shown.index.equals(frame.index) and set(shown["town"]) <= {"Ulm", "Bonn", "Köln"}
    assert np.allclose(shown["age"], vae.reconstruct(x)[:, 0])
    codes = pa.codes(vae, holes)
    assert list(codes) == ["z1", "z2"] and np.array_equal(codes, pa.codes(vae, x)) and codes.index.equals(frame.index)
    filled = pa.impute(vae, holes, draws=4, particles=10)
    assert filled.index.names == ["draw", "row"] and len(filled) == 120 and not filled.isna().any().any()
    assert filled.loc[(2, "p5"), "town"] == frame.loc["p5", "town"] and filled.loc[2, "age"].nunique() > 25
    assert np.isclose(filled.loc[(3, "p3"), "age"], pa.impute(vae, x, draws=4, particles=10)[3, 3, 0])


def test_images_with_channels_last_are_turned():
    x = np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3)).astype(np.uint8)
    ae = pa.Autoencoder(
        pa.priors.Normal(2), pa.likelihoods.ContinuousBernoulli((3, 8, 6)), pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8)
    )
    upright = torch.from_numpy(x).movedim(-1, 1).float() / 255
    assert torch.equal(ae.encode(x).mean, ae.encode(upright).mean)
    found = pa.data.load(x)
    assert found.image_shape == (3, 8, 6) and found.domain == "unit"


REFUSED = {
    "a list of texts": (lambda: pa.fit(small_vae(), ["a", "b"]), "an array, a tensor"),
    "a dictionary": (lambda: pa.fit(small_vae(), {"x": X}), "got dict"),
    "three columns": (lambda: pa.fit(small_vae(), (X, Y, Y)), "x, or x and labels y, got 3"),
    "complex numbers": (lambda: pa.fit(small_vae(), X.numpy() * 1j), "expected numbers, got an array of complex"),
    "labels of another length": (lambda: pa.log_likelihood(small_vae(), (X, Y[:3])), "same number of rows"),
    "a DataLoader without batches": (
        lambda: pa.fit(small_vae(), DataLoader(X[:5], 8, drop_last=True), progress=False),
        "at least one batch.*drop_last",
    ),
    "a DataLoader of unknown length": (lambda: pa.fit(small_vae(), DataLoader(Stream(), 8), progress=False), "with a length.*__len__"),
    "a Dataset of images": (lambda: pa.data.load(Pictures()), "as tensors from the Pictures; for images use transform=.*ToTensor"),
    "a Dataset of images, in training": (lambda: pa.fit(small_vae(), Pictures(), progress=False), "transform=.*ToTensor"),
    "an empty Dataset": (lambda: pa.log_likelihood(small_vae(), TensorDataset(X[:0])), "at least one example"),
    "masked entries": (lambda: pa.fit(small_vae(), np.ma.masked_equal(X.numpy(), 1.0)), "NaN or infinity"),
    "values that float32 rounds away": (
        lambda: pa.fit(small_vae(2, likelihood=pa.likelihoods.Normal(2)), 1e9 + np.random.default_rng(0).normal(size=(50, 2))),
        "entry . of x is 1e\\+09 in size.*pa.data.load.*subtracts the mean",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_was_expected(name):
    wrong, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        wrong()


def test_values_that_float32_rounds_coarsely_are_warned_about():
    x = 1e6 + 10 * np.random.default_rng(0).normal(size=(50, 2))
    ae = small_vae(2, likelihood=pa.likelihoods.Standardised(pa.likelihoods.Normal(2)))
    ae.likelihood.measure(torch.from_numpy(x))
    with pytest.warns(UserWarning, match="float32 rounds to .* steps"):
        ae.encode(x)


@pytest.mark.parametrize("columns", [["draw", "x", "labels"], ["train", "test", "schema"]])
def test_columns_may_be_called_anything(columns):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 3)), columns=columns)
    vae = pa.recipes.vae(frame, latent_dim=2, hidden=4)
    pa.fit(vae, frame, epochs=1, progress=False)
    assert vae.schema.names == columns and len(pa.log_likelihood(vae, frame[columns[::-1]], particles=5).values) == 30


def test_a_model_made_by_hand_takes_columns_and_scale_from_its_training_data():
    frame = pd.DataFrame({"a.b": np.linspace(1e4, 2e4, 50), "c": np.linspace(-1, 3, 50) ** 2})
    standard = pa.likelihoods.Standardised(pa.likelihoods.Normal(2))
    ae = pa.Autoencoder(pa.priors.Normal(2), standard, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    pa.fit(ae, frame, epochs=2, progress=False)
    assert ae.schema.names == ["a.b", "c"] and torch.allclose(ae.likelihood.shift, torch.tensor(frame.to_numpy().mean(0)).float())
    loader = DataLoader(TensorDataset(torch.tensor(frame.to_numpy())), 7, shuffle=True)
    other = ae.replace(likelihood=pa.likelihoods.Standardised(pa.likelihoods.StudentT(2)))
    pa.fit(other, loader, epochs=1, progress=False)
    assert torch.allclose(other.likelihood.factor, ae.likelihood.factor, rtol=1e-5)
