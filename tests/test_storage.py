"""Invariant 8: a model is written whole, comes back equal, and loading executes nothing."""

import pickle
import struct
import sys

import pytest
import torch
from conftest import small_vae, with_structure
from pyro import distributions as dist
from pyro.infer import RenyiELBO, Trace_ELBO
from safetensors.torch import save_file

import pyroae as pa

MODELS = {
    "vae": lambda: small_vae(),
    "sparse_kl": lambda: pa.recipes.sparse_kl(pa.data.load("digits")),
    "denoising": lambda: pa.recipes.denoising(pa.data.load("digits")).replace(corruption=pa.corruption.SaltPepper(0.1, high=2.0)),
    "a Pyro prior": lambda: small_vae(prior=dist.StudentT(3.0, torch.arange(4.0), 1.0)),
    "a mixture prior": lambda: small_vae(
        prior=dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Independent(dist.Normal(torch.randn(3, 4), torch.ones(3, 4)), 1))
    ),
    "learned scales": lambda: small_vae(
        likelihood=pa.likelihoods.Normal(64, scale="per_dimension"), prior=pa.priors.Normal(4, scale="learned")
    ),
    "from Pyro": lambda: small_vae(likelihood=pa.likelihoods.FromPyro("StudentT", 64, df=4.0)),
    "a Pyro objective": lambda: small_vae(objective=RenyiELBO(alpha=0.5, num_particles=3)),
    "deep": lambda: small_vae().replace(encoder=pa.nets.MLP([30, 20], activation="ELU", dropout=0.1)),
    "double": lambda: small_vae().double(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_equal(name, tmp_path, digits):
    ae = MODELS[name]()
    with torch.no_grad():
        for p in ae.parameters():
            p.add_(0.01 * torch.randn_like(p))
    pa.save(ae, tmp_path / "model.safetensors")
    again = pa.load(tmp_path / "model.safetensors")
    x = digits.test.x[:5].to(next(ae.parameters()).dtype)
    assert torch.equal(again.reconstruct(x), ae.eval().reconstruct(x)) and not again.training
    assert again.state_dict().keys() == ae.state_dict().keys() and type(again.objective) is type(ae.objective)
    terms = [pa.elbo_terms(model, x).elbo for model in (ae, again)]
    assert torch.equal(*terms)
    pa.fit(again, x, epochs=1, progress=False)


def test_objectives_keep_their_settings(tmp_path):
    ae = small_vae(objective=pa.Penalised(pa.penalties.Contractive(0.3, probes=2), Trace_ELBO(num_particles=7)))
    pa.save(ae, tmp_path / "model.safetensors")
    objective = pa.load(tmp_path / "model.safetensors").objective
    assert (objective.penalty.weight, objective.penalty.probes, objective.elbo.num_particles) == (0.3, 2, 7)


def test_a_users_network_is_given_back_to_load(tmp_path, digits):
    ae = small_vae().replace(encoder=torch.nn.Sequential(torch.nn.Linear(64, 8)))
    pa.save(ae, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="Sequential.*give the module itself"):
        pa.load(tmp_path / "model.safetensors")
    again = pa.load(tmp_path / "model.safetensors", encoder=torch.nn.Sequential(torch.nn.Linear(64, 8)))
    assert torch.equal(again.reconstruct(digits.test.x), ae.reconstruct(digits.test.x))


@pytest.mark.parametrize(
    "crafted",
    [
        {"part": "os.system", "command": "true"},
        {"part": "Prior.__init__"},
        {"part": "Network.MLP", "hidden": {"part": "posix.system"}},
        {"distribution": "torch.os"},
        {"distribution": "__builtins__"},
        {"elbo": "Predictive"},
        {"part": ["Prior", "Normal"]},
        {"part": "Prior.Normal", "event_shape": "__import__('os')"},
        {"part": "Prior.Normal", "event_shape": [4], "unknown": 1},
        {"eval": "1"},
        {"tensor": [1, 2], "dtype": "nn"},
        {"module": "os.system"},
        [],
        7,
    ],
    ids=str,
)
@pytest.mark.parametrize("position", ["prior", "encoder", "objective"])
def test_a_crafted_structure_is_refused(crafted, position, tmp_path):
    path = tmp_path / "model.safetensors"
    pa.save(small_vae(), path)
    with_structure(path, lambda structure: structure.update({position: crafted}))
    modules = set(sys.modules)
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        pa.load(path)
    assert set(sys.modules) == modules


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("executed",))


WRONG_FILES = {
    "a pickle": lambda good: pickle.dumps(Bomb()),
    "a text": lambda good: b"hello",
    "nothing": lambda good: b"",
    "truncated in the header": lambda good: good[:50],
    "truncated in the weights": lambda good: good[:-100],
    "a huge header length": lambda good: struct.pack("<Q", 2**60) + good[8:],
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_or_truncated_file_is_a_clear_error(name, tmp_path):
    path = tmp_path / "model.safetensors"
    pa.save(small_vae(), path)
    path.write_bytes(WRONG_FILES[name](path.read_bytes()))
    with pytest.raises(ValueError, match="expected a file written by pa.save"):
        pa.load(path)


def test_a_torch_pickle_is_refused(tmp_path):
    torch.save(Bomb(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="expected a file written by pa.save"):
        pa.load(tmp_path / "model.safetensors")


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    pa.save(small_vae(), path)
    with_structure(path, lambda structure: structure["decoder"].update(hidden=17))
    with pytest.raises(ValueError, match="size mismatch"):
        pa.load(path)


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="pyroae-1"):
        pa.load(tmp_path / "other.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    from pathlib import Path

    path = tmp_path / "model.safetensors"
    pa.save(small_vae(), path)
    good = path.read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        pa.save(small_vae(z=5), path)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("recipe", ["vae", "sparse_kl", "contractive"])
def test_a_fresh_process_loads_it(recipe, tmp_path):
    import subprocess

    pa.save(getattr(pa.recipes, recipe)(pa.data.load("digits")), tmp_path / "model.safetensors")
    code = f"import pyroae; pyroae.load({str(tmp_path / 'model.safetensors')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
