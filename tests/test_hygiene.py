"""A call of the library changes nothing that belongs to the whole process, and needs nothing that a bare machine lacks."""

import os
import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pytest
import torch
from conftest import small_vae
from pyro.infer.util import is_validation_enabled

import pyroae as pa
from pyroae.cli import main

X = torch.rand(30, 64).round()


def globals_of_the_process():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matrix products": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "validation": (is_validation_enabled(), torch.distributions.Distribution._validate_args),
        "module hooks": len(torch.nn.modules.module._global_forward_hooks) + len(torch.nn.modules.module._global_forward_pre_hooks),
        "parameter store": set(pyro.get_param_store().keys()),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "NumPy's": str(np.random.get_state()),
        "Python's": random.getstate(),
        "warnings": list(warnings.filters),
        "matplotlib": (matplotlib.get_backend(), dict(matplotlib.rcParams)),
        "environment": dict(os.environ),
        "Ctrl-C": signal.getsignal(signal.SIGINT),
        "folder": os.getcwd(),
        "search path": list(sys.path),
    }


def trained(ae, **more):
    return pa.fit(ae, X, epochs=2, batch_size=8, seed=0, progress=False, **more)


CALLS = {
    "fit": trained,
    "fit, traced": lambda ae: trained(ae, compile="traced"),
    "fit in bfloat16": lambda ae: trained(ae, compile=pa.Step(precision="bf16")),
    "fit with validation and a folder": lambda ae: trained(ae, validation=pa.Validation(X, patience=1), run="run"),
    "fit that goes on": lambda ae: [
        trained(ae, run="run"),
        pa.fit(ae, X, epochs=4, batch_size=8, seed=0, progress=False, run=pa.Run("run", resume=True)),
    ],
    "fit that diverges": lambda ae: pytest.raises(ValueError, trained, ae, lr=1e30),
    "data": lambda ae: pa.data.load("digits", binarize="dynamic", validation=0.1),
    "save and load": lambda ae: [pa.save(ae, "model.safetensors"), pa.load("model.safetensors").reconstruct(X)],
    "log_likelihood": lambda ae: pa.log_likelihood(ae, X, particles=20),
    "a Laplace proposal": lambda ae: pa.log_likelihood(ae, X, particles=20, proposal=pa.proposals.Laplace(steps=2)),
    "elbo_terms": lambda ae: pa.elbo_terms(ae, X),
    "ais": lambda ae: pa.ais(ae, X[:3], chains=2, temperatures=3),
    "bdmc": lambda ae: pa.bdmc(ae, X[:3], chains=2, temperatures=3),
    "decompose": lambda ae: pa.decompose(ae, X[:3], particles=20, best=pa.proposals.Optimised(steps=2)),
    "aggregate": lambda ae: pa.aggregate(ae, X),
    "active_units": lambda ae: pa.active_units(ae, X),
    "predictive_check": lambda ae: pa.predictive_check(ae, X),
    "sbc": lambda ae: pa.sbc(ae, X),
    "codes": lambda ae: pa.codes(ae, X),
    "jacobian": lambda ae: pa.jacobian(ae, X[:3]),
    "reconstruction_error": lambda ae: pa.reconstruction_error(ae, X),
    "pictures": lambda ae: pa.plots.save(lambda ax=None: ax.plot([1, 2]), "picture.png"),
}


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """Some libraries (scikit-learn) change environment and warnings when they are imported; we import late."""
    trained(small_vae(), compile="traced")
    pa.data.load("digits")


@pytest.mark.parametrize("name", CALLS)
def test_a_call_changes_nothing_that_belongs_to_the_process(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ae = small_vae()
    pyro.param("the caller's", torch.ones(1))
    before = globals_of_the_process()
    CALLS[name](ae)
    after = globals_of_the_process()
    assert [(key, _apart(before[key], after[key])) for key in before if before[key] != after[key]] == []


def _apart(before, after):
    """What is in one of two collections only, to be read in a failed test."""
    if not isinstance(before, (dict, set, list, tuple)):
        return before, after
    one, other = ({repr(each) for each in (side.items() if isinstance(side, dict) else side)} for side in (before, after))
    return one ^ other


def test_warnings_as_errors_and_a_home_that_cannot_be_written(tmp_path):
    """In a process of its own: the main job where every warning ends it and no home is there."""
    home = tmp_path / "home"
    home.write_text("a file, in which nobody can make a folder")
    bare = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config")}
    job = ["-m", "pyroae", "train", "--epochs", "1", "--particles", "5", "--out", "run"]
    done = subprocess.run([sys.executable, "-W", "error", *job], cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_paths_as_windows_writes_them(tmp_path, monkeypatch, capsys):
    """Backslashes and blanks in paths; and no file of a run has a name that Windows refuses."""
    monkeypatch.chdir(tmp_path)
    data, run = "C:\\my data\\some digits.npy", "D:\\my runs\\one"
    np.save(data, X.numpy())
    quick = ["--particles", "5", "--hidden", "8", "--latent_dim", "2"]
    assert main(["train", "--data", data, "--epochs", "1", *quick, "--out", run]) == 0
    assert main(["train", "--resume", run, "--epochs", "2"]) == 0 and main(["evaluate", run, "--particles", "5"]) == 0
    names = [path.name for path in Path(run).rglob("*")]
    assert len(names) > 10 and not [name for name in names if re.search(r'[<>:"/\\|?*]|[. ]$', name)], capsys.readouterr().err
