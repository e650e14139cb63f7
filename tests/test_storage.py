"""Invariant 8: a model is written whole, comes back equal, and loading executes nothing."""

import pickle
import struct
import sys

import pytest
import torch
from conftest import small_vae, with_structure
from pyro import distributions as dist
from pyro.infer import RenyiELBO, Trace_ELBO
from safetensors import SafetensorError, safe_open
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
    "a transformed prior": lambda: small_vae(
        prior=dist.TransformedDistribution(
            dist.Normal(torch.zeros(4), torch.ones(4)), [dist.transforms.AffineTransform(1.0, 2.0), dist.transforms.TanhTransform()]
        ),
        posterior=pa.posteriors.Delta(),
    ),
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
        {"class": "os.system", "command": "true"},
        {"class": "priors.__init__"},
        {"class": "nets.MLP", "hidden": {"class": "posix.system"}},
        {"class": "distributions.torch.os"},
        {"class": "distributions.__builtins__"},
        {"class": "distributions.SpanningTree"},
        {"class": "objectives.Predictive"},
        {"class": ["priors", "Normal"]},
        {"class": "priors.Normal", "event_shape": "__import__('os')"},
        {"class": "priors.Normal", "event_shape": [4], "unknown": 1},
        {"class": "priors.Normal", "event_shape": [4], "scale": "inf"},
        {
            "class": "priors.FromDistribution",
            "distribution": {"class": "distributions.Normal", "loc": {"tensor": [0], "dtype": "_inductor"}},
        },
        {
            "class": "priors.FromDistribution",
            "distribution": {"class": "distributions.Delta", "v": {"tensor": [[0], [1, 2]], "dtype": "float32"}},
        },
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
    with pytest.raises(ValueError, match="has the shape .*, where the structure has"):
        pa.load(path)


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="pyroae-2"):
        pa.load(tmp_path / "other.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    pa.save(small_vae(), path)
    good = path.read_bytes()

    def full(tensors, path, header):
        path.write_bytes(good[:10])
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("pyroae.files.save_file", full)
    with pytest.raises(OSError):
        pa.save(small_vae(z=5), path)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("recipe", ["vae", "sparse_kl", "contractive"])
def test_a_fresh_process_loads_it(recipe, tmp_path):
    import subprocess

    pa.save(getattr(pa.recipes, recipe)(pa.data.load("digits")), tmp_path / "model.safetensors")
    code = f"import pyroae; pyroae.load({str(tmp_path / 'model.safetensors')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_models_are_equal_bytes(tmp_path):
    """In other processes too, where hashes of text differ."""
    import os
    import subprocess

    code = "import sys, torch; sys.path.insert(0, sys.argv[2]); from conftest import small_vae; torch.manual_seed(0); "
    code += "import pyroae; pyroae.save(small_vae(), sys.argv[1])"
    for seed in ("1", "2"):
        path, here = str(tmp_path / seed), os.path.dirname(__file__)
        subprocess.run([sys.executable, "-c", code, path, here], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_weights_of_every_float_type_are_read(dtype, tmp_path, digits):
    path = tmp_path / "model.safetensors"
    ae = small_vae()
    pa.save(ae, path)
    with safe_open(path, "pt") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name).to(dtype) for name in file.keys()}
    save_file(weights, path, header)
    again = pa.load(path)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(p.dtype == kept for p in again.parameters())
    assert pa.elbo_terms(again, digits.test.x[:5].to(kept)).elbo.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    ae = small_vae()
    with torch.no_grad():
        ae.encoder[0].bias[3] = value
    pa.save(ae, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="encoder.0.bias' is not finite"):
        pa.load(tmp_path / "model.safetensors")
