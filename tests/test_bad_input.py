"""Bad input: one clear sentence with what was expected, what came and what to do; nothing is lost."""

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.infer import RenyiELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO
from torch import nn

import pyroae as pa
from pyroae.cli import main

X = torch.rand(20, 64).round()
AGES = np.linspace(-1.0, 1.0, 20)
quiet = functools.partial(pa.fit, progress=False)
mlp = pa.nets.MLP


def built(prior=None, likelihood=None, posterior=None, encoder=None, decoder=None, **parts):
    return pa.Autoencoder(
        prior or pa.priors.Normal(4),
        likelihood or pa.likelihoods.Bernoulli(64),
        posterior or pa.posteriors.Normal(),
        encoder or mlp(8),
        decoder or mlp(8),
        **parts,
    )


def with_nan():
    x = X.clone()
    x[3, 5] = torch.nan
    return x


class _Rounded(nn.Module):
    def forward(self, x):
        return x[:, 0].round().long()


def global_model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).expand([len(x), 64]).to_event(1), obs=x)


def global_guide(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))


# what is wrong -> (what a user does, words that the message holds: what was expected, what came, the remedy)
PYTHON = {
    "grey pixels under Bernoulli": (lambda: quiet(small_vae(), torch.rand(20, 64)), ["0 or 1", "outside", "binarize"]),
    "grey pixels scored": (lambda: pa.log_likelihood(small_vae(), torch.rand(20, 64)), ["0 or 1", "binarize"]),
    "values above 1 under ContinuousBernoulli": (
        lambda: quiet(built(likelihood=pa.likelihoods.ContinuousBernoulli(64)), 3 * X),
        ["between 0 and 1", "to 3", "rescale"],
    ),
    "negative counts": (
        lambda: quiet(built(likelihood=pa.likelihoods.FromPyro("Poisson", 64)), -X),
        ["whole number, not negative", "from -1", "likelihood whose support"],
    ),
    "NaN": (
        lambda: quiet(small_vae(), with_nan()),
        ["finite", "NaN or infinity in 1 of 20 rows", "drop these rows, or", "Missing(Bernoulli(...))", "--likelihood Missing"],
    ),
    "NaN in the validation data": (lambda: quiet(small_vae(), X, validation=with_nan()), ["finite", "1 of 20"]),
    "infinity under Normal": (
        lambda: quiet(built(likelihood=pa.likelihoods.Normal(64)), X / 0),
        ["finite", "20 of 20", "drop these rows"],
    ),
    "wrong event shape": (lambda: quiet(small_vae(), X[:, :63]), ["(B, 64)", "(20, 63)", "decoder for events"]),
    "an image where a vector is meant": (lambda: small_vae().encode(X.reshape(20, 8, 8)), ["(B, 64)", "(20, 8, 8)", "x.reshape(-1, 64)"]),
    "one example without its batch dimension": (lambda: small_vae().reconstruct(X[0]), ["(B, 64)", "(64,)"]),
    "an array of text": (lambda: quiet(small_vae(), X.numpy().astype(str)), ["expected numbers", "<U", "DataFrame"]),
    "a whole data set": (lambda: quiet(small_vae(), pa.data.load(X)), ["one split", ".train", ".test"]),
    "empty data": (lambda: quiet(small_vae(), X[:0]), ["at least one example", "(0, 64)"]),
    "empty data scored": (lambda: pa.log_likelihood(small_vae(), X[:0]), ["at least one example", "(0, 64)"]),
    "a code of the wrong size": (lambda: small_vae().decode(torch.zeros(2, 5)), ["(..., 4)", "(2, 5)"]),
    "an encoder of the wrong width": (lambda: built(encoder=nn.Linear(64, 7)), ["encoder", "8 numbers", "got 7", "last layer"]),
    "a decoder of the wrong width": (lambda: built(decoder=nn.Linear(4, 63)), ["decoder", "64 numbers", "got 63", "last layer"]),
    "an encoder of the wrong input": (lambda: built(encoder=nn.Linear(63, 8)), ["encoder", "(2, 64)", "failed"]),
    "a network that is none": (lambda: built(encoder=torch.relu), ["encoder", "nn.Module", "builtin_function"]),
    "a network that returns two things": (lambda: built(encoder=nn.LSTM(64, 8)), ["encoder", "tuple"]),
    "prior and posterior that disagree in size": (
        lambda: built(posterior=pa.posteriors.Normal(5)),
        ["(4,)", "(5,)", "leave the posterior's shape out"],
    ),
    "prior and posterior that disagree in support": (
        lambda: built(prior=pa.priors.Flat(4, support="unit_interval")),
        ["posterior Normal", "between 0 and 1", "Delta"],
    ),
    "no size at all": (lambda: built(prior=pa.priors.Normal()), ["prior Normal", "shape of one event", "Normal(64)"]),
    "a size of zero": (lambda: pa.priors.Normal(0), ["positive whole number", "got 0"]),
    "a size that is no number": (lambda: pa.likelihoods.Bernoulli(64.0), ["positive whole number", "64.0"]),
    "a prior over single numbers": (lambda: built(prior=dist.Normal(0.0, 1.0)), ["vectors", ".expand"]),
    "a prior that is none": (lambda: built(prior="Normal"), ["pa.priors.Normal(8)", "str"]),
    "a likelihood that is none": (lambda: built(likelihood=dist.Bernoulli(0.5)), ["pa.likelihoods.Bernoulli(64)", "Bernoulli("]),
    "a part in another's place": (lambda: built(posterior=pa.likelihoods.Normal(4)), ["posterior", "pa.posteriors.Normal()"]),
    "an objective that is none": (lambda: built(objective=pa.penalties.L2()), ["objective", "Trace_ELBO"]),
    "a negative scale": (lambda: pa.priors.Laplace(4, scale=-1.0), ["Laplace: scale", "positive", "-1"]),
    "a scale of the wrong length": (lambda: pa.likelihoods.Normal(4, scale=[1.0, 2.0]), ["(4,)", "[1.0, 2.0]"]),
    "a misspelt source of a scale": (lambda: pa.likelihoods.Normal(4, scale="lerned"), ["'learned'", "'lerned'"]),
    "a misspelt Pyro distribution": (lambda: pa.likelihoods.FromPyro("StudenT", 4), ["'StudenT'", "did you mean 'StudentT'"]),
    "a misspelt parameter": (lambda: pa.likelihoods.FromPyro("StudentT", 4, sclae=1.0), ["'sclae'", "did you mean 'scale'"]),
    "a distribution that does not say enough": (
        lambda: pa.likelihoods.FromPyro("Categorical", 4),
        ["Categorical", "'logits'", "Conditional of its own"],
    ),
    "an unknown support": (lambda: pa.priors.Flat(4, support="reals"), ["'unit_interval'", "'reals'"]),
    "an unknown activation": (lambda: mlp(8, activation="Rely"), ["'Rely'", "did you mean"]),
    "a negative width": (lambda: mlp([8, -3]), ["positive whole numbers", "[8, -3]"]),
    "dropout of everything": (lambda: mlp(8, dropout=1.0), ["dropout", "less than 1", "1.0"]),
    "a fraction above 1": (lambda: pa.corruption.Masking(1.5), ["Masking", "from 0 to 1", "1.5"]),
    "salt below pepper": (lambda: pa.corruption.SaltPepper(low=1.0, high=0.0), ["low < high", "low=1.0"]),
    "a negative penalty": (lambda: pa.penalties.Contractive(-0.1), ["at least 0", "-0.1"]),
    "an impossible target": (lambda: pa.penalties.KLSparsity(target=1.0), ["between 0 and 1", "1.0"]),
    "no probes": (lambda: pa.penalties.Contractive(probes=0), ["at least 1", "got 0"]),
    "a penalty that is none": (lambda: pa.Penalised(0.1), ["Contractive", "0.1"]),
    "KL sparsity on a code that is no probability": (
        lambda: quiet(pa.recipes.autoencoder(pa.data.load(X)), X, elbo=pa.Penalised(pa.penalties.KLSparsity())),
        ["the loss is nan", "lower lr", "penalty's domain"],
    ),
    "a column far from 0": (
        lambda: quiet(built(likelihood=pa.likelihoods.Normal(2, scale=1.0)), pd.DataFrame({"age": AGES, "income": 1e15 * AGES})),
        ["the loss is", "column 'income' ranges from -", "Standardised", "again those from before training"],
    ),
    "an unknown part to replace": (lambda: small_vae().replace(priors=pa.priors.Normal(4)), ["'priors'", "prior, likelihood"]),
    "a negative learning rate": (lambda: quiet(small_vae(), X, lr=-1e-3), ["lr", "positive", "-0.001"]),
    "no epochs": (lambda: quiet(small_vae(), X, epochs=0), ["epochs", "at least 1", "got 0"]),
    "half a batch": (lambda: quiet(small_vae(), X, batch_size=0.5), ["batch_size", "whole number", "0.5"]),
    "patience without validation": (
        lambda: quiet(small_vae(), X, validation=pa.Validation(None, patience=3)),
        ["patience", "validation=pa.Validation"],
    ),
    "an optimizer that is none": (lambda: quiet(small_vae(), X, optimizer=lambda p, lr=1.0: None), ["torch optimizer", "NoneType"]),
    "a learning rate far too high": (lambda: quiet(small_vae(), X, lr=1e30, epochs=3), ["the loss is", "lower lr"]),
    "a device that is none": (lambda: quiet(small_vae(), X, device="gpu0"), ["'cuda'", "'gpu0'"]),
    "data of an unknown kind": (lambda: quiet(small_vae(), "digits"), ["tensor", "Dataset", "str"]),
    "a model without its guide": (lambda: quiet(global_model, X), ["guide=...", "function"]),
    "zero particles": (lambda: pa.log_likelihood(small_vae(), X, particles=0), ["particles", "at least 1", "got 0"]),
    "particles as a float": (lambda: pa.elbo_terms(small_vae(), X, particles=1e3), ["particles", "1000.0"]),
    "log p(x) of a point posterior": (
        lambda: pa.log_likelihood(built(posterior=pa.posteriors.Delta()), X, proposal="guide"),
        ["Delta", "density", 'proposal="auto"'],
    ),
    "log p(x) under an improper prior": (lambda: pa.log_likelihood(built(prior=pa.priors.Flat(4)), X), ["improper", "pa.priors.Normal"]),
    "log p(x) of a program that does not split into data": (
        lambda: pa.log_likelihood(global_model, X, guide=global_guide),
        ["'w'", "plate over the data", "pyro.plate('data', len(x))"],
    ),
    "samples from an improper prior": (lambda: built(prior=pa.priors.Flat(4)).sample(3), ["Flat", "improper", "pa.priors.Normal"]),
    "an unknown data set": (lambda: pa.data.load("minst"), ["'minst'", "did you mean 'mnist'"]),
    "a file that is not there": (lambda: pa.data.load("nowhere/x.npy"), ["no file nowhere/x.npy"]),
    "a file of an unknown kind": (lambda: pa.data.load("table.xls"), [".csv", "table.xls"]),
    "binarizing real data": (lambda: pa.data.load(torch.randn(10, 3), binarize="static"), ["0 to 1", "real", "rescale"]),
    "binarizing twice": (lambda: pa.data.load(X, binarize="dynamic"), ["binary", "leave binarize out"]),
    "an unknown way to binarize": (lambda: pa.data.load("digits", binarize="random"), ["'dynamic'", "'random'"]),
    "a domain that does not hold": (
        lambda: pa.data.load(torch.randn(10, 3), domain="counts"),
        ["given as counts", "are real", "domain='real'"],
    ),
    "an unknown domain": (lambda: pa.data.load(X, domain="grey"), ["real, binary, unit", "'grey'"]),
    "NaN in a file": (lambda: pa.data.load(with_nan()), ["finite", "1 of 20 rows", "drop or fill"]),
    "text in an array": (lambda: pa.data.load(np.array([["a", "b"]] * 5)), ["numbers", "<U1"]),
    "a list of numbers instead of rows": (lambda: pa.data.load(np.zeros(5)), ["expected rows (N, ...)", "(5,)", "x[:, None]"]),
    "a validation share of everything": (lambda: pa.data.load("digits", validation=1.0), ["less than 1", "1.0"]),
    "a test share of nothing": (lambda: pa.data.load(X, test=0.0), ["greater than 0", "0.0"]),
    "a test share of a set with a test split": (lambda: pa.data.load("digits", test=0.3), ["digits has", "leave test out"]),
    "a penalised ELBO without a differentiable loss": (
        lambda: pa.Penalised(pa.penalties.L2(), RenyiELBO()),
        ["differentiable_loss", "RenyiELBO"],
    ),
    "an ELBO class for an ELBO": (lambda: quiet(small_vae(), X, elbo=RenyiELBO), ["pyro.infer.Trace_ELBO()", "RenyiELBO"]),
    "an ELBO without a loss": (lambda: quiet(small_vae(), X, elbo=TraceTailAdaptive_ELBO(num_particles=2)), ["no loss", "IWAE"]),
    "no particles in an ELBO": (lambda: quiet(small_vae(), X, elbo=RenyiELBO(num_particles=0)), ["num_particles", "at least 1"]),
    "another model's optimizer": (
        lambda: quiet(small_vae(), X, optimizer=torch.optim.Adam(small_vae().parameters())),
        ["this model's parameters", "a function such as torch.optim.Adam"],
    ),
    "an optimizer that needs a closure": (lambda: quiet(small_vae(), X, optimizer=torch.optim.LBFGS), ["dense gradients", "LBFGS"]),
    "a posterior off its prior's support": (
        lambda: built(prior=dist.Dirichlet(torch.ones(4)), posterior=pa.posteriors.FullNormal()),
        ["outside the support", "posterior FullNormal"],
    ),
    "a mean-field ELBO for draws without gradients": (
        lambda: quiet(built(prior=pa.priors.Bernoulli(4), posterior=pa.posteriors.FromPyro("Bernoulli")), X, elbo=TraceMeanField_ELBO()),
        ["reparameterised", "'z'", "TraceGraph_ELBO"],
    ),
    "a Pyro prior to be trained": (
        lambda: built(prior=dist.Normal(torch.zeros(4, requires_grad=True), 1.0)),
        ["not trained", "loc='learned'"],
    ),
    "a guide that draws another site": (lambda: pa.log_likelihood(global_model, X, guide=lambda x: None), ["guide draws nothing", "w"]),
    "saving what is no Autoencoder": (lambda: pa.save(nn.Linear(2, 2), "x.safetensors"), ["Autoencoder", "Linear"]),
    "saving to a folder": (lambda: pa.save(small_vae(), "."), ["is a folder", "model.safetensors"]),
    "training in inference mode": (lambda: torch.inference_mode()(quiet)(small_vae(), X), ["outside torch.inference_mode()"]),
    "sparse gradients": (
        lambda: quiet(built(encoder=nn.Sequential(_Rounded(), nn.Embedding(2, 8, sparse=True), nn.Flatten())), X),
        ["dense gradients", "encoder.1", "sparse=False"],
    ),
    "an unknown argument of a part": (lambda: _as_value_error(lambda: pa.priors.Normal(3, scal=2.0)), ["Normal", "did you mean 'scale'"]),
    "too few rows to hold any out": (lambda: pa.data.load(X[:1]), ["1 rows are too few", "0.2"]),
    "saving into a folder that is not there": (lambda: pa.save(small_vae(), "nowhere/model.safetensors"), ["nowhere", "create it first"]),
    "loading what is not there": (lambda: pa.load("nowhere.safetensors"), ["no such file", "pa.save"]),
    "loading with an unknown part": (lambda: _saved_and_loaded(encodr=mlp(8)), ["'encodr'", "did you mean 'encoder'"]),
}


def _as_value_error(call):
    """Python's own error for a wrong argument is a TypeError."""
    try:
        call()
    except TypeError as error:
        raise ValueError(str(error)) from error


def _saved_and_loaded(**parts):
    pa.save(small_vae(), "model.safetensors")
    pa.load("model.safetensors", **parts)


@pytest.mark.parametrize("name", PYTHON)
def test_python_raises_one_clear_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong, words = PYTHON[name]
    with pytest.raises(ValueError) as raised:
        wrong()
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert len(message) < 400


FILES = {
    "a csv of text": (
        "table.csv",
        b"a,b\nx,1\ny,1\nz,1\n",
        ["no column of table can be modelled", "a: text", "b: constant: 1", "columns=[...]"],
    ),
    "a ragged csv": ("table.csv", b"1,2\n3,4,5\n", ["2 cells in line 2, got 3"]),
    "an empty csv": ("table.csv", b"", ["at least one row"]),
    "a truncated npy": ("array.npy", b"\x93NUMPY\x01\x00v\x00", ["cannot be read"]),
    "a pickled npy": ("array.npy", None, ["cannot be read", "Python objects"]),
    "an npz that is none": ("array.npz", b"PK nonsense", ["cannot be read"]),
    "an npz without train": ("array.npz", {"a": X, "b": X}, ["'train'", "['a', 'b']"]),
    "a parquet that is none": ("table.parquet", b"nonsense", ["cannot be read"]),
    "a folder without images": ("folder", None, ["expected images (", ".png", "got none"]),
    "an image that is none": ("folder/a.png", b"nonsense", ["a.png cannot be read as an image"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_clear_error(name, tmp_path):
    where, content, words = FILES[name]
    path = tmp_path / where
    (path if where == "folder" else path.parent).mkdir(exist_ok=True)
    if name == "a pickled npy":
        np.save(path, np.array([{}, []], dtype=object))
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        pa.data.load(path.parent if where == "folder/a.png" else path)
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so asking for it is no mistake")
def test_cuda_asked_for_and_absent():
    with pytest.raises(ValueError, match="CUDA was asked for.*device='auto' or 'cpu'"):
        quiet(small_vae(), X, device="cuda")


@pytest.mark.parametrize("dataset", ["mnist", "binarized-mnist", "omniglot"])
def test_a_data_folder_that_is_not_there_or_empty(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="PYROAE_DATA names the folder .*gone, which is not there"):
        pa.data.load(dataset)


@pytest.mark.parametrize("dataset, expected", [("binarized-mnist", "binarized_mnist.npz"), ("omniglot", "chardata.mat")])
def test_data_that_are_not_in_the_folder(dataset, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"{expected}.*PYROAE_DATA"):
        pa.data.load(dataset)


COMMANDS = {
    "unknown command": (["trane"], ["'trane'", "did you mean 'train'"]),
    "unknown recipe": (["train", "vea"], ["'vea'", "did you mean 'vae'"]),
    "unknown option": (["train", "--epoch", "3"], ["--epoch", "did you mean '--epochs'"]),
    "unknown part": (["train", "--prior", "Laplac"], ["prior", "'Laplac'", "did you mean 'Laplace'"]),
    "unknown argument of a part": (["train", "--prior", "Laplace", "--prior.sclae", "1"], ["Laplace", "'sclae'", "did you mean 'scale'"]),
    "an argument without its part": (["train", "--corruption.fraction", ".3"], ["--corruption.fraction", "add --corruption NAME"]),
    "unknown objective": (["train", "--objective", "TraceMeanfield_ELBO"], ["did you mean 'TraceMeanField_ELBO'"]),
    "unknown data": (["train", "--data", "digit"], ["'digit'", "did you mean 'digits'"]),
    "unknown kind of part": (["parts", "priors"], ["'priors'", "did you mean 'prior'"]),
    "data for a recipe": (["train", "digits"], ["'digits'", "--data digits"]),
    "text for a number": (["train", "--epochs", "many"], ["expected --epochs as a whole number, got 'many'"]),
    "text in a list": (["train", "--hidden", "[3,many]"], ["expected --hidden[1] as a whole number, got 'many'"]),
    "text for a part's number": (
        ["train", "--prior", "VampPrior", "--prior.components", "many"],
        ["expected --prior.components as a whole number, got 'many'"],
    ),
    "an unknown mode": (["train", "--compile", "fast"], ["expected --compile as 'auto', 'eager', 'traced', 'compiled', got 'fast'"]),
    "an unknown optimizer": (["train", "--optimizer", "Adamm"], ["no optimizer 'Adamm'; did you mean 'Adam'"]),
    "a scheduler's argument forgotten": (["train", "--scheduler", "StepLR"], ["--scheduler needs --scheduler.step_size"]),
    "an objective's argument forgotten": (
        ["train", "--objective", "Tempered", "--objective.beta", "Linear"],
        ["--objective.beta needs --objective.beta.steps"],
    ),
    "another word for Normal": (["train", "--likelihood", "Gaussian"], ["did you mean 'Normal'"]),
    "a negative learning rate": (["train", "--lr", "-1"], ["lr", "positive", "-1"]),
    "zero particles": (["train", "--particles", "0"], ["particles", "at least 1"]),
    "an unknown binarization": (["train", "--binarize", "sometimes"], ["binarize", "sometimes"]),
    "grey pixels under Bernoulli": (["train", "--likelihood", "Bernoulli"], ["0 or 1", "binarize"]),
    "a fraction above 1": (["train", "--corruption", "Masking", "--corruption.fraction", "2"], ["from 0 to 1"]),
    "patience without validation": (["train", "--patience", "3"], ["patience", "validation"]),
    "a folder that is in use": (["train", "--out", "used"], ["used exists and is not empty", "--out"]),
    "a folder that is a file": (["train", "--out", "used/precious.txt"], ["precious.txt exists"]),
    "a config that is not there": (["train", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
    "a config with an unknown setting": (["train", "--config", "used/bad.yaml"], ["epoks"]),
    "a config of another recipe": (["train", "vae", "--config", "used/other.yaml"], ["'vae'", "'sparse'", "leave the recipe out"]),
    "evaluating what is no run": (["evaluate", "used"], ["run folder", "runs/vae-digits-1", "got used"]),
    "evaluating a run that was stopped": (["evaluate", "used/stopped"], ["train --resume used/stopped"]),
    "evaluating with no particles": (["evaluate", "used", "--particles", "0"], ["particles", "at least 1", "got 0"]),
    "evaluating nothing": (["evaluate"], ["run"]),
    "a recipe's option beside the part that replaces it": (
        ["train", "sparse", "--scale", "2", "--prior", "Normal"],
        ["--scale", "--prior"],
    ),
    "an unknown device": (["train", "--device", "gpu0"], ["'cuda'", "'gpu0'"]),
    "a size of zero": (["train", "--latent_dim", "0"], ["positive whole number", "got 0"]),
    "reporting what is no run": (["report", "used"], ["run folder", "got used"]),
    "reporting nothing": (["report"], ["run"]),
    "comparing one run": (["compare", "used"], ["at least two", "got used"]),
    "comparing a run with itself": (["compare", "used", "used"], ["two different", "got used used"]),
    "an unknown proposal": (["evaluate", "used", "--proposal", "Laplac"], ["proposal", "Laplac"]),
    "evaluating with half a particle": (["evaluate", "used", "--particles", "0.5"], ["particles", "0.5"]),
    "going on with what is no run": (["train", "--resume", "used"], ["--resume RUN", "got used"]),
    "going on elsewhere": (["train", "--resume", "odd", "--out", "used"], ["the run's own folder", "--out"]),
    "a share of everything": (["train", "--validation", "1"], ["validation", "less than 1", "1"]),
    "the settings of another program": (["evaluate", "list"], ["run folder", "got list"]),
    "data in the settings that are none": (["evaluate", "odd"], ["expected --data as text, got 5"]),
    "a share in the settings that is none": (["evaluate", "odder"], ["expected --test as a number", "'half'"]),
    "a run whose data have gone": (["evaluate", "moved"], ["no file gone.npy"]),
    "no hidden units": (["train", "--hidden", "[0]"], ["positive whole numbers", "[0]"]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    pa.save(small_vae(), path)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_exits_with_2_and_one_message_and_loses_nothing(name, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/precious.txt").write_text("years of work")
    (tmp_path / "used/bad.yaml").write_text("epoks: 3")
    (tmp_path / "used/other.yaml").write_text("recipe: sparse")
    (tmp_path / "used/stopped").mkdir()
    (tmp_path / "used/stopped/settings.json").write_text("{}")
    runs = {"list": [1], "odd": {"data": 5}, "odder": {"test": "half"}, "moved": {"data": "gone.npy"}}
    for run, settings in runs.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "settings.json").write_text(json.dumps(settings))
        shutil.copy(model, tmp_path / run)
    argv, words = COMMANDS[name]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert all(word in err for word in words), err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1 and err.startswith("pyroae: ") and out == ""
    assert (tmp_path / "used/precious.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["used", *runs])


def test_a_run_whose_loss_is_not_finite_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--lr", "1e30", "--epochs", "2"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("pyroae: fit: the loss is") and "lower lr" in last
    assert list((tmp_path / "runs").iterdir()) == []
