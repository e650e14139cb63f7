"""Nothing that is read executes: neither pickles nor names, whatever file they are in; and no file makes others larger than itself."""

import gzip
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from conftest import small_vae, with_structure
from PIL import Image
from pyro import distributions as dist

import pyroae as pa
from pyroae import registry
from pyroae.cli import main
from pyroae.data import readers


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
    "a module to import": "prior: {class: evil.Prior}",
    "a module by its name alone": "prior: evil.Prior",
    "a module inside a part": "objective: {class: Penalised, penalty: {class: evil.Penalty}}",
    "a function as an optimizer": "optimizer: {class: os.system, command: touch executed}",
    "the same as text": """optimizer: '{"class": "os.system", "command": "touch executed"}'""",
    "the same as text of another parser": """optimizer: '{"class_path": "os.system", "init_args": {"command": "touch executed"}}'""",
    "a part as text": """prior: '{"class_path": "evil.Prior"}'""",
    "the same in one line": "optimizer.class: os.system",
    "a function of our own imports": "optimizer: {class: pyroae.runs.shutil.copy, src: x.yaml, dst: executed}",
    "a function of torch's": "optimizer: {class: torch.hub.load, repo_or_dir: ., source: local, model: x}",
    "a module of torch's that is a program": "optimizer: torch.utils.model_dump.__main__.Adam",
    "a module of ours that is a program": "prior: pyroae.__main__.Normal",
    "a process as a scheduler": "scheduler: {class: subprocess.Popen, args: [touch, executed]}",
    "a tag of YAML's": '!!python/object/apply:os.system ["touch executed"]',
    "a tag inside": "prior: !!python/name:evil.Prior",
    "another file": "config: other.yaml",
    "a folder above": "out: ../outside",
    "a folder elsewhere": "out: /tmp/pyroae-outside",
    "a folder through a link": "out: link/x",
    "many doubling anchors": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 29)),
    "deep lists": "hidden: " + "[" * 2000 + "]" * 2000,
    "more than a megabyte": "data: " + "x" * 2**20,
    "a name twice": "epochs: 1\nepochs: 2",
    "text for a number": "epochs: many",
    "a number for text": "data: 12",
    "a list for a number": "lr: [1]",
    "NaN": '{"lr": NaN}',
    "a number too large": '{"epochs": 1e999}',
    "a part's unknown argument": "prior: {class: Normal, command: x}",
    "no mapping": "[1, 2]",
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("way", ["--config", "--resume", "two files"])
def test_a_settings_file_imports_calls_and_reaches_nothing(name, way, tmp_path, monkeypatch, capsys):
    (tmp_path / "here/run").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "outside")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    (tmp_path / "here/evil.py").write_text("open('executed', 'w')")
    (tmp_path / "here/other.yaml").write_text("epochs: 1")
    for file in ("x.yaml", "run/settings.json"):
        (tmp_path / "here" / file).write_text(SETTINGS[name])
    files = {"--config": ["--config", "x.yaml"], "--resume": ["--resume", "run"], "two files": ["--config", "x.yaml", "--config", "none"]}
    assert main(["train", *files[way], "--particles", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyroae: train: ") and len(error.splitlines()) == 1 and len(error) < 1000
    assert not (tmp_path / "here/executed").exists() and "evil" not in sys.modules and not [*(tmp_path / "outside").iterdir()]


OWN = """
import pyroae as pa
from pyro import distributions as dist


class Heavy(pa.likelihoods.Likelihood):
    def __init__(self, event_shape=None, scale: float | str = "learned"):
        super().__init__(dist.Cauchy, event_shape, scale=scale)
"""


def test_a_class_of_ones_own_is_brought_by_the_command_line(tmp_path):
    """In processes of their own: found in the current folder when it is named, refused in a sentence when only a file names it."""
    (tmp_path / "my_parts.py").write_text(OWN)

    def pyroae(*argv):
        done = subprocess.run([sys.executable, "-m", "pyroae", *argv], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    quick = ["--epochs", "1", "--particles", "5"]
    code, said = pyroae("train", "--likelihood", "my_parts.Heavy", "--likelihood.scale", ".3", *quick, "--out", "run")
    assert code == 0, said
    for command in (["evaluate", "run", "--particles", "5"], ["train", "--resume", "run"], ["train", "--config", "run/settings.json"]):
        code, said = pyroae(*command)
        assert code == 2 and "--use my_parts" in said and "Traceback" not in said, said
    for command in (["evaluate", "run", "--particles", "5"], ["train", "--resume", "run", "--epochs", "2"], ["report", "run"]):
        code, said = pyroae(*command, "--use", "my_parts")
        assert code == 0, said
    assert "my_parts.Heavy" in pyroae("parts", "likelihood", "--use", "my_parts")[1]
    assert pyroae("train", "--use", "nowhere")[0] == 2


def likelihood_of(module):
    class SideBySide(pa.likelihoods.Likelihood):
        def __init__(self, event_shape=None):
            super().__init__(dist.Laplace, event_shape, scale=1.0)

    SideBySide.__module__ = module
    return pa.register("likelihoods")(SideBySide)


def test_classes_of_one_name_from_two_modules_are_not_taken_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._TABLE, "likelihoods", dict(registry.members("likelihoods")))
    first = likelihood_of("one_module")
    assert registry.find("likelihoods", "SideBySide") is first
    second = likelihood_of("another.module")
    for cls in (first, second):
        pa.save(small_vae(likelihood=cls(64)), tmp_path / "model.safetensors")
        assert type(pa.load(tmp_path / "model.safetensors").likelihood) is cls
        assert registry.find("likelihoods", f"{cls.__module__}.SideBySide") is cls
    with pytest.raises(ValueError, match="expected one likelihood 'SideBySide', got 2: say which, another.module.SideBySide or one_mod"):
        registry.find("likelihoods", "SideBySide")
    with pytest.raises(ValueError, match="--use third"):
        registry.find("likelihoods", "third.SideBySide")


FAR_TOO_LARGE = {
    "a wide layer": ("encoder", {"hidden": 10**9}),
    "many layers": ("encoder", {"hidden": [3000] * 1000}),
    "a large code": ("prior", {"event_shape": 10**10}),
    "a larger one": ("prior", {"event_shape": 10**40}),
    "a large x": ("likelihood", {"event_shape": 10**9}),
    "many components": ("prior", {"class": "priors.GaussianMixture", "components": 10**9}),
    "many pseudo-inputs": ("prior", {"class": "priors.VampPrior", "components": 10**9}),
    "many levels": ("likelihood", {"class": "likelihoods.LogisticMixture", "components": 10**9}),
    "a decoder of images": ("decoder", {"class": "nets.Deconv", "channels": [10**5, 10**5]}),
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


def test_the_caller_raises_the_limit(tmp_path):
    pa.save(small_vae(), tmp_path / "model.safetensors")
    with_structure(tmp_path / "model.safetensors", lambda structure: structure["encoder"].update(hidden=300_000))
    with pytest.raises(ValueError, match=r"more than 16,\S+ numbers, which is the limit; .*raise it: pa.load\(..., limit=6e\+08\)"):
        pa.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the weight 'guide.encoder.0.bias' has the shape"):  # it was made, and is not this file's
        pa.load(tmp_path / "model.safetensors", limit=6e8)
    with pytest.raises(ValueError, match="more than 250 numbers"):
        pa.load(tmp_path / "model.safetensors", limit=1000)


def test_no_settings_file_raises_the_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("limit: 1e12\nepochs: 1")
    assert main(["train", "--config", "x.yaml"]) == 2 and "no file raises it, say --limit 1e+12" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.zeros((50, 8), np.float32))
    quick = ["--epochs", "1", "--particles", "2", "--hidden", "8"]
    assert main(["train", "--data", "x.npy", "--limit", "1000", *quick]) == 2 and "raise it by limit=" in capsys.readouterr().err
    assert main(["train", "--data", "x.npy", "--limit", "1e12", *quick, "--out", "run"]) == 0, capsys.readouterr().err
    assert "limit" not in json.loads((tmp_path / "run/settings.json").read_text())
    assert main(["evaluate", "run", "--limit", "1000"]) == 2 and "raise it by limit=" in capsys.readouterr().err
    assert main(["evaluate", "run", "--particles", "2"]) == 0, capsys.readouterr().err


def parquet_of(column):
    return lambda path: pyarrow.parquet.write_table(pyarrow.table({"a": column()}), path, compression="zstd")


def compressed_arrow(path):
    batch = pyarrow.record_batch({"a": np.zeros(100_000)})
    with pyarrow.ipc.new_file(path, batch.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as file:
        for _ in range(50):
            file.write_batch(batch)


LARGE = {  # file -> what writes it in a few kilobytes, the limit that it exceeds
    "rows on disk.parquet": (parquet_of(lambda: np.zeros(300_000)), 1e7, r"the order of the 300,000 rows of .* would take 0.0 GB"),
    "lists.parquet": (parquet_of(lambda: [[0] * 100_000] * 100), 1e7, "lists.parquet would take 0.2 GB"),
    "one long text.parquet": (parquet_of(lambda: ["x" * 1000] * 100_000), 2e7, "unpacks to more than the limit"),
    "compressed.arrow": (compressed_arrow, 1e7, "unpacks to more than the limit"),
    "rows on disk.npy": (lambda path: np.lib.format.open_memmap(path, "w+", np.uint8, (300_000, 1)), 1e7, "the order of the 300,000 rows"),
    "images/b.png": (lambda path: Image.new("L", (1300, 1300)).save(path), 1e8, "b.png has 1,690,000 pixels, more than the limit of 1,118"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_small_file_of_large_data_is_refused_unless_the_caller_raises_the_limit(name, tmp_path, monkeypatch):
    write, limit, words = LARGE[name]
    monkeypatch.setattr(readers, "MEMORY", 1e6 if "rows on disk" in name else 1e9)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write(path)
    source = path.parent if name.startswith("images") else path
    if source != path:
        Image.new("L", (8, 8)).save(path.parent / "a.png")  # every image is looked at, not only the first
    assert path.stat().st_size < 400_000
    with pytest.raises(ValueError, match=f"{words}.*raise it by limit="):
        pa.data.load(source, limit=limit)
    others = "images of one size|nothing is left of|NaN" if "rows on disk" not in name else "^$"
    try:
        pa.data.load(source, limit=100 * limit)
    except ValueError as error:  # for another reason
        assert re.search(others, str(error)), error


def test_a_packed_file_of_images_is_read_as_far_as_its_header_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    for count, words in ((2**31 - 1, "array of shape"), (20, "cannot reshape array of size 1000")):
        with gzip.open(path, "wb") as file:
            file.write(struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28) + bytes(1000))
        with pytest.raises(ValueError, match=f"is missing or damaged.*{words}"):
            pa.data.load("mnist")


def test_a_large_model_is_not_too_large(tmp_path):
    ae = small_vae().replace(encoder=pa.nets.MLP([500, 500, 500]), prior=pa.priors.VampPrior(4, components=300))
    pa.save(ae, tmp_path / "model.safetensors")
    assert pa.load(tmp_path / "model.safetensors").state_dict().keys() == ae.state_dict().keys()
