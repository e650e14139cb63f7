"""Nothing that is read executes: neither pickles nor names, whatever file they are in; and no file makes others larger than itself."""

import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import small_vae, with_structure

import pyroae as pa
from pyroae import configs
from pyroae.cli import main


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return os.mkdir, (self.proof,)


def pickled(proof) -> bytes:
    return pickle.dumps(Payload(proof))


def of_torch(proof) -> bytes:
    content = io.BytesIO()
    torch.save({"weights": Payload(proof)}, content)
    return content.getvalue()


def of_torch_once(proof) -> bytes:
    content = io.BytesIO()
    torch.save({"weights": Payload(proof)}, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def npy(proof) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([[Payload(proof)]], dtype=object), allow_pickle=True)
    return content.getvalue()


def npz(proof) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("train.npy", npy(proof))
    return content.getvalue()


PICKLES = [pickled, of_torch, of_torch_once, npy, npz]


@pytest.fixture
def proof(tmp_path):
    """What a payload would make; it is not there after the test."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def test_a_payload_would_execute(tmp_path):
    loaders = {pickled: pickle.loads, of_torch: lambda content: torch.load(io.BytesIO(content), weights_only=False)}
    for make, load in loaders.items():
        load(make(tmp_path / "executed"))
        (tmp_path / "executed").rmdir()


SUFFIXES = ["npy", "npz", "csv", "parquet", "arrow", "feather", "pt", "pth", "pkl", "png", "mat"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", PICKLES, ids=lambda make: make.__name__)
def test_no_data_file_is_unpickled(make, suffix, tmp_path, proof):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"x.{suffix}"
    path.write_bytes(make(proof))
    with pytest.raises(ValueError):
        pa.data.load(path.parent if suffix == "png" else path)


@pytest.mark.parametrize("name, file", [("binarized-mnist", "binarized_mnist/binarized_mnist.npz"), ("omniglot", "chardata.mat")])
@pytest.mark.parametrize("make", PICKLES, ids=lambda make: make.__name__)
def test_no_named_data_set_is_unpickled(make, name, file, tmp_path, proof, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(make(proof))
    with pytest.raises(ValueError):
        pa.data.load(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--epochs", "1", "--particles", "5", "--out", str(folder)]) == 0
    return folder


def copied(run, tmp_path):
    import shutil

    return shutil.copytree(run, tmp_path / "run")


@pytest.mark.parametrize("make", [pickled, of_torch], ids=lambda make: make.__name__)
def test_no_file_of_a_run_is_unpickled(make, run, tmp_path, proof, monkeypatch, capsys):
    """Each file of a run in turn is a pickle, under its own name, for every command that reads it."""
    monkeypatch.chdir(tmp_path)
    for file in sorted(path.relative_to(run) for path in run.rglob("*") if path.suffix in (".safetensors", ".json", ".csv")):
        folder = copied(run, tmp_path / str(file))
        (folder / file).write_bytes(make(proof))
        must = file.name in ("model.safetensors", "settings.json")
        scores = [["evaluate", str(folder), "--particles", "5"], ["compare", str(folder), str(run), "--particles", "5"]]
        on = ["train", "--resume", str(folder), "--epochs", "2", "--particles", "5"]
        for command in [on] if file.parent.name == "checkpoints" else scores if must else scores[:1]:
            code = main(command)
            assert code == 2 if must else code in (0, 2), (file, command)
            assert "Traceback" not in capsys.readouterr().err
        assert main(["train", "--config", str(folder / file), "--epochs", "1", "--out", str(tmp_path / "other")]) == 2 or not must


SETTINGS = {
    "a module to import": "prior: {class_path: evil.Prior}",
    "a module by its name alone": "prior: evil.Prior",
    "a module inside a part": "objective: {class_path: Penalised, init_args: {penalty: {class_path: evil.Penalty}}}",
    "a function as an optimizer": "optimizer: {class_path: os.system, init_args: {command: touch executed}}",
    "the same in one line": "optimizer.class_path: os.system",
    "a function of our own imports": "optimizer: {class_path: pyroae.runs.shutil.copy, init_args: {src: x.yaml, dst: executed}}",
    "a function of torch's": "optimizer: {class_path: torch.hub.load, init_args: {repo_or_dir: ., source: local, model: x}}",
    "a process as a scheduler": "scheduler: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}",
    "a tag of YAML's": '!!python/object/apply:os.system ["touch executed"]',
    "another file": "config: other.yaml",
    "a folder above": "out: ../outside",
    "a folder elsewhere": "out: /tmp/pyroae-outside",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_settings_file_imports_calls_and_reaches_nothing(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    (tmp_path / "here/evil.py").write_text("open('executed', 'w')")
    (tmp_path / "here/other.yaml").write_text("epochs: 1")
    (tmp_path / "here/x.yaml").write_text(SETTINGS[name])
    assert main(["train", "--config", "x.yaml", "--epochs", "1", "--particles", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyroae: train: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "here/executed").exists() and "evil" not in sys.modules and not (tmp_path / "outside").exists()


def test_what_the_command_line_names_too_may_be_in_a_settings_file():
    content = {"prior": {"class_path": "my_parts.Mine", "init_args": {"scale": 0.5}}, "data": "x.npy", "out": "runs/a"}
    configs.check(content, [], {"my_parts.Mine"})
    configs.check({"optimizer": "AdamW", "scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR"}}, [], [])
    with pytest.raises(ValueError, match="names my_parts.Mine, .* on the command line as well"):
        configs.check(content, [pa.priors.Normal], [])


FAR_TOO_LARGE = {
    "a wide layer": ("encoder", {"hidden": 10**9}),
    "many layers": ("encoder", {"hidden": [3000] * 1000}),
    "a large code": ("prior", {"event_shape": 10**10}),
    "a larger one": ("prior", {"event_shape": 10**40}),
    "a large x": ("likelihood", {"event_shape": 10**9}),
    "many components": ("prior", {"part": "Prior.GaussianMixture", "components": 10**9}),
    "many pseudo-inputs": ("prior", {"part": "Prior.VampPrior", "components": 10**9}),
    "many levels": ("likelihood", {"part": "Likelihood.LogisticMixture", "components": 10**9}),
    "a decoder of images": ("decoder", {"part": "Network.Deconv", "channels": [10**5, 10**5]}),
}


@pytest.mark.parametrize("name", FAR_TOO_LARGE)
def test_a_file_that_names_more_than_it_holds_is_refused_before_memory_is_taken(name, tmp_path):
    part, crafted = FAR_TOO_LARGE[name]
    pa.save(small_vae(), tmp_path / "model.safetensors")
    with_structure(tmp_path / "model.safetensors", lambda structure: structure[part].update(crafted))
    code = f"""
import resource
import pyroae
pyroae.load
from pyroae import nets, priors, likelihoods
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    pyroae.load({str(tmp_path / "model.safetensors")!r})
except ValueError as error:
    assert "cannot be rebuilt" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base < 200_000
else:
    raise SystemExit("loaded")
"""
    if name == "a wide layer":  # once from outside, to be sure of the memory; the others by their message
        subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        pa.load(tmp_path / "model.safetensors")


def test_a_large_model_is_not_too_large(tmp_path):
    ae = small_vae().replace(encoder=pa.nets.MLP([500, 500, 500]), prior=pa.priors.VampPrior(4, components=300))
    pa.save(ae, tmp_path / "model.safetensors")
    assert pa.load(tmp_path / "model.safetensors").state_dict().keys() == ae.state_dict().keys()
