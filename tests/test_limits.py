"""How much memory a small file can ask for: looked up in its headers first, refused above a limit that the caller can raise."""

import gzip
import json
import re
import struct
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from conftest import small_vae, with_structure
from PIL import Image

import pyroae as pa
from pyroae.cli import main
from pyroae.data import readers

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
