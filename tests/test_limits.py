"""How much memory a small file can ask for: looked up in its headers first, refused above a limit that the caller can raise."""

import gzip
import io
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import scipy.io
import torch
from conftest import small_vae, with_structure
from PIL import Image

import pyroae as pa
from pyroae import bounded, sizes
from pyroae.cli import main
from pyroae.data import ipc, readers
from pyroae.recipes import RECIPES

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


RUNS = [
    "--latent_dim 1000000000",
    "--hidden 1000000000",
    "--prior GaussianMixture --prior.components 1000000000",
    "--prior Normal --prior.event_shape 300000000",
    "--encoder Conv --encoder.channels [100000,100000]",
    "--likelihood LogisticMixture --likelihood.components 1000000000",
    "--config x.yaml",
]


def test_settings_of_models_that_are_too_large_are_refused_before_memory_is_taken(tmp_path):
    """In a process of its own, whose peak of memory is that of a usual model."""
    (tmp_path / "x.yaml").write_text("latent_dim: 400000000\nprior: {class: VampPrior, components: 1000}")
    code = f"""
import resource
from pyroae.cli import main
assert main(["train", "--epochs", "1", "--particles", "2", "--out", "small"]) == 0
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for run in {RUNS!r}:
    assert main(["train", *run.split()]) == 2
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "numbers, which is the limit; raise it by --limit, in bytes" in line]
    assert len(said) == len(RUNS) and int(done.stdout.splitlines()[-1]) < 500, done.stderr + done.stdout


DRAWS = {
    "objective: {class: IWAE, particles: 1000000000}": "1,000,000,000 particles for each of 128 examples",
    "objective: {class: PIWAE, groups: 1000000}": "8,000,000 particles for each of 128 examples",
    "objective: {class: Trace_ELBO, num_particles: 10000000}": "10,000,000 particles for each of 128 examples",
    "objective: {class: Tempered, elbo: {class: TraceMeanField_ELBO, num_particles: 10000000}}": "10,000,000 particles",
    "objective: {class: Penalised, penalty: L2, elbo: {class: Renyi, particles: 10000000}}": "10,000,000 particles",
    "objective: {class: Penalised, penalty: {class: Contractive, probes: 10000000}}": "10,000,000 particles",
}


@pytest.mark.parametrize("setting", DRAWS)
def test_settings_of_steps_that_are_too_large_are_refused(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(setting)
    assert main(["train", "--config", "x.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"pyroae: train: a step with {DRAWS[setting]}" in said and "GB of memory, more than the limit of 8.0 GB" in said, said
    assert not (tmp_path / "runs").exists()


def test_the_constructors_of_python_know_the_memory_of_the_machine():
    with pytest.raises(ValueError, match="Normal: expected an event of at most .* numbers, as the memory of this machine holds"):
        pa.priors.Normal(10**15)
    with pytest.raises(ValueError, match="encoder: its parts take more than .* numbers, all that the memory of this machine holds"):
        small_vae().replace(encoder=pa.nets.MLP([10**9, 10**9]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_size_of_a_model_is_found_without_it(recipe, monkeypatch):
    """All of it is described, nothing made; and a model that was described first is made with the same random numbers."""
    data = pa.data.load("digits", binarize="dynamic")
    monkeypatch.setattr(bounded, "_REAL", 0)
    with bounded._Described(1e9) as described:
        assert all(parameter.is_meta for parameter in RECIPES[recipe](data).parameters())
    made = described.allowed - described.left
    torch.manual_seed(0)
    first = bounded.build(lambda: RECIPES[recipe](data), 2 * made).state_dict()
    torch.manual_seed(0)
    plain = RECIPES[recipe](data).state_dict()
    torch.testing.assert_close(first, plain, rtol=1e-6, atol=0.0)  # rows scaled to length 1 twice differ by rounding
    with pytest.raises(bounded.TooManyNumbers):
        bounded.build(lambda: RECIPES[recipe](data), made - 1)


def test_the_readme_lists_every_fixed_limit():
    folder = Path(pa.__file__).parent
    said = re.findall(r"^([A-Z_]+) = .*?  # (.*)$", (folder / "sizes.py").read_text(), re.M)
    rows = [f"| `{name}` | {getattr(sizes, name):,} | {what} |" for name, what in said]
    assert "\n".join(["|---|---|---|", *rows, ""]) in (folder / "README.md").read_text(), "\n".join(rows)
    assert [name for name in vars(sizes) if name.isupper()] == [name for name, _ in said]


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
    assert main(["train", "--config", "x.yaml"]) == 2 and "no file can raise it, add --limit 1e+12" in capsys.readouterr().err
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
    "archive.npz": (lambda path: np.savez_compressed(path, train=np.zeros((2_000_000, 4))), 1e7, "archive.npz would take 0.1 GB"),
    "compressed.arrow": (compressed_arrow, 1e7, "compressed.arrow would take 0.0 GB"),
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
    others = "images of one size|no column of|NaN" if "rows on disk" not in name else "^$"
    try:
        pa.data.load(source, limit=100 * limit)
    except ValueError as error:  # for another reason
        assert re.search(others, str(error)), error


def idx(path, count, rows=20):
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28) + bytes(rows * 784))


def mnist(folder):
    (folder / "MNIST/raw").mkdir(parents=True)
    for name in ("train", "t10k"):
        idx(folder / f"MNIST/raw/{name}-images-idx3-ubyte.gz", 20)
        (folder / f"MNIST/raw/{name}-labels-idx1-ubyte").write_bytes(struct.pack(">4Bi", 0, 0, 8, 1, 20) + bytes(20))


def omniglot(folder):
    arrays = {"data": np.zeros((784, 20)), "testdata": np.zeros((784, 20)), "target": np.eye(50)[:, :20]}
    scipy.io.savemat(folder / "chardata.mat", arrays, do_compression=True)


def binarized(folder):
    (folder / "binarized_mnist").mkdir()
    np.savez_compressed(
        folder / "binarized_mnist/binarized_mnist.npz", **dict.fromkeys(("train", "valid", "test"), np.zeros((20, 98), "u1"))
    )


def amat(folder):
    (folder / "binarized_mnist").mkdir()
    for name in ("train", "valid", "test"):
        (folder / f"binarized_mnist/binarized_mnist_{name}.amat").write_bytes((b" ".join([b"0"] * 784) + b"\n") * 20)


NAMED = {"mnist": mnist, "omniglot": omniglot, "binarized-mnist": binarized, "binarized-mnist as text": amat}


@pytest.mark.parametrize("name", NAMED)
def test_the_limit_holds_for_data_sets_with_a_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    NAMED[name](tmp_path)
    with pytest.raises(ValueError, match=r"more than the limit of .* GB; raise it by limit="):
        pa.data.load(name.partition(" ")[0], limit=20_000)
    assert len(pa.data.load(name.partition(" ")[0], limit=1e6).train) == 20


def test_a_packed_file_of_images_is_read_as_far_as_its_header_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    mnist(tmp_path)
    for count, words in (
        (2**31 - 1, r"an array of shape \[2147483647, 28, 28\] by its header, would take 8,418.1 GB .* raise it by limit=9.3e\+12"),
        (30, "is missing or damaged.*cannot reshape array of size 15680"),
        (-1, "is missing or damaged.*shape \\[-1"),
    ):
        idx(tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz", count)
        with pytest.raises(ValueError, match=words):
            pa.data.load("mnist")


def written(schema, *batches, **options):
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as file:
        for batch in batches:
            file.write_batch(batch)
    return memoryview(sink.getvalue())


COLUMNS = {
    "numbers": lambda: np.zeros(1000),
    "holes": lambda: [1.0, None] * 500,
    "text": lambda: ["some", "text"] * 500,
    "categories": lambda: pyarrow.array(["a", "b"] * 500).dictionary_encode(),
    "lists": lambda: [[1, 2, 3]] * 1000,
}


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("name", COLUMNS)
def test_the_size_in_an_arrow_files_headers_is_what_it_unpacks_to(name, compression):
    batch = pyarrow.record_batch({"a": COLUMNS[name]()})
    content = written(batch.schema, *[batch] * 3, compression=compression)
    alone = content.nbytes - written(batch.schema, *[batch.slice(0, 0)] * 3).nbytes
    size = ipc.unpacked_size(content)
    assert size == 0 if compression is None else 0 < size < 3.1 * batch.nbytes
    assert compression is None or size > 0.9 * 3 * (batch.nbytes if name != "categories" else 4000), (size, alone)


def test_damaged_headers_of_arrow_files_are_refused():
    batch = pyarrow.record_batch({"a": np.zeros(50), "b": ["x"] * 50})
    content, generator, outcomes = bytes(written(batch.schema, batch, compression="zstd")), np.random.default_rng(0), set()
    for _ in range(3000):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = generator.integers(0, 256)
        try:
            outcomes.add(ipc.unpacked_size(memoryview(damaged)) >= 0)
        except ValueError:
            outcomes.add(False)
    assert outcomes == {True, False}


def of_arrow(*columns):
    return lambda path: path.write_bytes(written((batch := pyarrow.record_batch(list(columns), [*"abcd"][: len(columns)])).schema, batch))


def views():
    """Ten thousand texts of the same 10,000 bytes."""
    view = struct.pack("<i4sii", 10_000, b"xxxx", 0, 0)
    buffers = [None, pyarrow.py_buffer(view * 10_000), pyarrow.py_buffer(b"x" * 10_000)]
    return pyarrow.Array.from_buffers(pyarrow.string_view(), 10_000, buffers)


def offsets(*ends):
    """Texts whose offsets are not checked by whoever writes them."""
    good = bytes(written(pyarrow.schema({"a": pyarrow.string()}), pyarrow.record_batch({"a": ["ab", "cd", "ef"]})))
    return good.replace(struct.pack("<4i", 0, 2, 4, 6), struct.pack("<4i", *ends))


def sheet(row, column):
    def write(path):
        book = openpyxl.Workbook()
        for number in range(20):
            book.active.append([number, 2 * number])
        book.active.cell(row, column, 1)
        book.save(path)

    return write


def sparse(path):
    np.savez(path, format="csr", shape=(5, 4), data=np.ones(5), indices=np.array([0, 1, 2, 10**8, 3]), indptr=np.arange(6))


def damaged_offsets(*ends):
    return lambda path: path.write_bytes(offsets(*ends))


REFUSED = {  # file -> what writes it, the limit, what the message says
    "one batch.arrow": (compressed_arrow, 3e7, "would take 0.0 GB of memory, more than the limit of 0.0 GB; raise it by limit=4.4e"),
    "views.arrow": (lambda path: of_arrow(views())(path), 2e7, "unpacks to more than the limit of 0.0 GB; raise it by limit=2.0e"),
    "runs.arrow": (
        of_arrow(pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([10**6], pyarrow.int32()), pyarrow.array([1.0]))),
        8e9,
        "the column 'a' is of type .*run_end_encoded.*, which is not supported",
    ),
    "nothing.arrow": (of_arrow(pyarrow.nulls(10**6)), 6e7, "nothing.arrow would take 0.1 GB"),
    "beyond.arrow": (damaged_offsets(0, 2, 4, 10**9), 8e9, "cannot be read"),
    "backwards.arrow": (damaged_offsets(0, 10**6, -5, 6), 8e9, "cannot be read"),
    "wide.csv": (lambda path: path.write_text("1," * 10_000 + "2\n" + "3," * 10_000 + "4\n"), 1e8, "the 10,001 columns of wide.csv"),
    "wide row.csv": (lambda path: path.write_text("a,b\n" + "3," * 100_000 + "4\n"), 1e9, "the 100,001 columns of wide row.csv"),
    "diagonal.jsonl": (lambda path: path.write_text("".join(f'{{"c{i}": 1}}\n' for i in range(3000))), 1e8, "diagonal.jsonl would take"),
    "columns.json": (lambda path: path.write_text(json.dumps({f"c{i}": {str(i): 1} for i in range(3000)})), 1e8, "columns.json would take"),
    "deep.json": (lambda path: path.write_text("[" * 100_000 + "]" * 100_000), 8e9, "cannot be read"),
    "far cell.xlsx": (sheet(1_000_000, 16_000), 8e9, "would take .* GB of memory"),
    "outside.npz": (sparse, 8e9, "indices must be < 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_crafted_file_is_refused_before_it_is_read(name, tmp_path):
    write, limit, words = REFUSED[name]
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 1e6
    with pytest.raises(ValueError, match=words):
        pa.data.load(tmp_path / name, limit=limit)


def test_negative_sizes_in_an_archive_make_no_room_for_large_ones(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("train", (10**7, 4)), ("test", (-(10**7), 4))):
            content = io.BytesIO()
            np.lib.format.write_array_header_2_0(content, {"descr": "<f4", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", content.getvalue() + bytes(max(0, 4 * 4 * shape[0])))
    with pytest.raises(ValueError, match=r"an array of shape \(-10000000, 4\)"):
        pa.data.load(tmp_path / "x.npz", limit=1e6)


def test_a_large_model_is_not_too_large(tmp_path):
    ae = small_vae().replace(encoder=pa.nets.MLP([500, 500, 500]), prior=pa.priors.VampPrior(4, components=300))
    pa.save(ae, tmp_path / "model.safetensors")
    assert pa.load(tmp_path / "model.safetensors").state_dict().keys() == ae.state_dict().keys()
