import functools
import importlib.util
import json
import math
import multiprocessing
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from pyro import distributions as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pyroae as pa
from pyroae.training.step import native

EXAMPLES = Path(__file__).parent.parent / "examples"
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(THREADS)  # each of the processes that share the tests has its share of the processors
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # and so have the processes that tests start
GRAPHS = tempfile.TemporaryDirectory(prefix="pyroae-graphs-")  # compiled graphs of the tests are not kept in the user's folder
os.environ["PYROAE_GRAPHS"] = GRAPHS.name


def pytest_configure(config):
    """GPUs are for the tests that need one: the others mean the CPU where they say no device."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def imported(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _figures():
    """pyplot keeps the figures of a test, and warns at the 21st."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def digits():
    return pa.data.load("digits", binarize="threshold")


@pytest.fixture(scope="session")
def grey():
    return pa.data.load("digits")


@pytest.fixture
def vae():
    return small_vae()


@pytest.fixture
def real_data():
    if not os.path.isdir(os.environ.get("PYROAE_DATA", "")):
        pytest.skip("needs the MNIST files: set PYROAE_DATA to the folder that holds MNIST/raw")


@functools.cache
def processes():
    """New processes that have imported everything already: that takes seconds, for each; no thread of the tests' own is lost in them."""
    context = multiprocessing.get_context("forkserver")
    others = ["ipykernel.kernelapp", "matplotlib.pyplot", "sklearn.datasets", "sklearn.model_selection", "torch._dynamo"]
    ours = ["pyroae.evaluation.representation", "pyroae.objectives", "pyroae.data.named", "pyroae.plots", "pyroae.recipes"]
    context.set_forkserver_preload([*others, "torch.fx.experimental.proxy_tensor", *ours, "test_distributed", "test_faults"])
    return context


def with_structure(path, change):
    """The model file with its structure changed."""
    with safe_open(path, "pt") as file:
        content, weights = json.loads(file.metadata()["pyroae"]), {name: file.get_tensor(name) for name in file.keys()}
    change(content["structure"])
    save_file(weights, path, {"pyroae": json.dumps(content)})


def run_uncompiled(monkeypatch, change=lambda result: result):
    """In place of native code, compiled graphs run with torch's kernels."""
    monkeypatch.setenv("PYROAE_GRAPHS", "off")
    monkeypatch.setattr(native, "compiled", lambda module, inputs, key: lambda inputs: [change(result) for result in module(*inputs)])


def small_vae(x=64, z=4, **parts):
    parts = {"prior": pa.priors.Normal(z), "likelihood": pa.likelihoods.Bernoulli(x), "posterior": pa.posteriors.Normal()} | parts
    return pa.Autoencoder(encoder=pa.nets.MLP(16), decoder=pa.nets.MLP(16), **parts)


def linear_gaussian(d=7, k=3, noise=0.6, widen=1.0):
    """z ~ N(0, I), x = W z + b + N(0, noise^2), W's columns orthogonal, so that the exact posterior is a diagonal Normal.

    Returns the Autoencoder whose guide is that posterior with its scales times ``widen``, data, and log p(x) in closed form.
    """
    w = torch.linalg.qr(torch.randn(d, k, dtype=torch.float64)).Q * torch.linspace(0.5, 2.0, k, dtype=torch.float64)
    b = torch.randn(d, dtype=torch.float64)
    precision = 1 + w.square().sum(0) / noise**2  # diagonal
    decoder, encoder = nn.Linear(k, d), nn.Linear(d, k)
    with torch.no_grad():
        decoder.weight.copy_(w), decoder.bias.copy_(b)
        encoder.weight.copy_(w.T / noise**2 / precision[:, None])
        encoder.bias.copy_(-(encoder.weight.double() @ b))
    ae = pa.Autoencoder(
        pa.priors.Normal(k),
        pa.likelihoods.Normal(d, scale=noise),
        pa.posteriors.Normal(scale=(widen / precision.sqrt()).tolist()),
        encoder,
        decoder,
    ).double()
    with torch.no_grad():  # in double precision
        decoder.weight.copy_(w), decoder.bias.copy_(b)
        encoder.weight.copy_(w.T / noise**2 / precision[:, None])
        encoder.bias.copy_(-(encoder.weight @ b))
        ae.posterior.scale.copy_(widen / precision.sqrt())
        ae.likelihood.scale.fill_(noise)
    marginal = dist.MultivariateNormal(b, w @ w.T + noise**2 * torch.eye(d, dtype=torch.float64))
    x = marginal.sample((40,))
    return SimpleNamespace(ae=ae, x=x, log_p=marginal.log_prob(x), precision=precision, w=w, b=b, noise=noise)


LOG_2PI = math.log(2 * math.pi)
