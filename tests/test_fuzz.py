"""Damaged files of every kind give data, a model, or one ``ValueError``, nothing else. 1,000 of each: uv run pytest -m slow."""

import gzip
import io
import json
import struct
import warnings

import numpy as np
import pytest
import scipy.io
import torch
from conftest import small_vae
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save as to_bytes

import pyroae as pa

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

FEW, MANY = 30, 1_000
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


def saved(write, *args) -> bytes:
    content = io.BytesIO()
    write(content, *args)
    return content.getvalue()


def parquet(content):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra pyroae[parquet] is not installed")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 5.0]}), content)


def arrow(content):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra pyroae[parquet] is not installed")
    table = pyarrow.table({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 5.0]})
    with pyarrow.ipc.new_file(content, table.schema) as file:
        file.write_table(table)


def idx() -> bytes:
    return struct.pack(">BBBBiii", 0, 0, 8, 3, 2, 28, 28) + bytes(2 * 784)


X, EYE, BITS = np.arange(12.0).reshape(6, 2), np.eye(784), np.zeros((2, 98), np.uint8)
FILES = {
    "x.npy": lambda: saved(np.save, X),
    "x.npz": lambda: saved(lambda file: np.savez_compressed(file, train=X, test=X)),
    "x.csv": lambda: b"a,b\n1,2\n3,4.5\n-1e3,nan\n",
    "x.parquet": lambda: saved(parquet),
    "x.arrow": lambda: saved(arrow),
    "images/x.png": lambda: saved(Image.fromarray(np.eye(8, dtype=np.uint8)).save, "png"),
    "images/x.jpg": lambda: saved(Image.fromarray(np.eye(8, dtype=np.uint8)).save, "jpeg"),
    "images/x.gif": lambda: saved(Image.fromarray(np.eye(8, dtype=np.uint8)).save, "gif"),
    "chardata.mat": lambda: saved(
        scipy.io.savemat, {"data": np.eye(784)[:, :2], "testdata": np.eye(784)[:, :2], "target": np.eye(50)[:, :2]}
    ),
    "binarized_mnist/binarized_mnist.npz": lambda: saved(lambda f: np.savez(f, **dict.fromkeys(("train", "valid", "test"), BITS))),
    "binarized_mnist/binarized_mnist_train.amat": lambda: b" ".join([b"0 1"] * 392) + b"\n",
    "MNIST/raw/train-images-idx3-ubyte": idx,
    "MNIST/raw/train-images-idx3-ubyte.gz": lambda: gzip.compress(idx()),
}
NAMED = {"chardata.mat": "omniglot", "binarized_mnist": "binarized-mnist", "MNIST": "mnist"}
EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "end"]), st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), max_size=6
)


def damaged(content: bytes, edits) -> bytes:
    """Bytes overwritten, cut out, put in, or the end cut off."""
    for how, where, what in edits:
        where %= len(content) + 1
        rest = {"set": content[where + len(what) :], "cut": content[where + len(what) :], "insert": content[where:], "end": b""}[how]
        content = content[:where] + (b"" if how in ("cut", "end") else what) + rest
    return content


def survives(load) -> bool:
    """Whether it loads; if not, by a ``ValueError`` that says something. Warnings are silent, as they are for a user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load()
        return True
    except ValueError as error:
        assert str(error)
        return False


def many(cases: int):
    return settings(max_examples=cases, deadline=None, database=None, derandomize=cases == FEW, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("cases", COUNTS)
@pytest.mark.parametrize("name", FILES)
def test_damaged_data(name, cases, tmp_path, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    path, good, seen = tmp_path / name, FILES[name](), []
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.startswith("MNIST"):  # the other three are whole
        for rest, content in (("train-labels-idx1", struct.pack(">BBBBi", 0, 0, 8, 1, 2) + bytes(2)), ("t10k-images-idx3", idx())):
            (path.parent / f"{rest}-ubyte").write_bytes(content)
        (path.parent / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBi", 0, 0, 8, 1, 2) + bytes(2))
    if name.endswith(".amat"):
        for which in ("valid", "test"):
            (path.parent / f"binarized_mnist_{which}.amat").write_bytes(good)
    source = NAMED.get(name.partition("/")[0]) or (path.parent if name.startswith("images") else path)

    @many(cases)
    @given(EDITS)
    def damage(edits):
        path.write_bytes(damaged(good, edits))
        seen.append(survives(lambda: pa.data.load(source, missing=name == "x.csv", test=None if source in NAMED.values() else 0.4)))

    damage()
    assert not all(seen)  # something was refused


@pytest.mark.parametrize("cases", COUNTS)
def test_damaged_model_files(cases, tmp_path):
    path, seen = tmp_path / "model.safetensors", []
    pa.save(small_vae(x=6, z=2), path)
    good = path.read_bytes()

    @many(cases)
    @given(EDITS)
    def damage(edits):
        path.write_bytes(damaged(good, edits))
        seen.append(survives(lambda: pa.load(path)))

    damage()
    assert not all(seen)


KEYS = st.sampled_from(["class", "module", "tensor", "dtype", "distribution", "hidden", "scale"])
PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN | st.sampled_from(["learned", "Normal", "priors.Normal", "MLP"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("cases", COUNTS)
def test_nonsense_in_a_models_structure(cases, tmp_path):
    path, seen = tmp_path / "model.safetensors", []
    pa.save(small_vae(x=6, z=2, corruption=pa.corruption.Masking(0.2), objective=pa.Penalised(pa.penalties.L2())), path)
    with safe_open(path, "pt") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}

    @many(cases)
    @given(st.data())
    def nonsense(data):
        content = json.loads(header["pyroae"])
        structure = content["structure"]
        place, key = structure, data.draw(st.sampled_from(sorted(structure)))
        while isinstance(place[key], dict) and data.draw(st.booleans()):
            place, key = place[key], data.draw(st.sampled_from([*place[key], "event_shape", "scale"]))
            if key not in place:
                break
        place[key] = data.draw(VALUES)
        path.write_bytes(to_bytes(weights, {"pyroae": json.dumps(content)}))
        seen.append(survives(lambda: pa.load(path)))

    nonsense()
    assert not all(seen)
    assert torch.get_default_dtype() == torch.float32
