"""Random data of the shapes that Pyro's examples download, in the files where they look first."""

import datetime
import pickle
import struct
from pathlib import Path

import numpy as np
import torch

SOURCES = {  # what an example's text names -> what stands in for it
    "polyphonic_data_loader": "JSB chorales",
    "faces_training": "Olivetti faces",
    "MNIST": "MNIST",
    "mnist": "MNIST",
    "multi_mnist": "multi-MNIST",
    "load_bart_od": "BART ridership",
}


def write(home: Path):
    """All data sets, into ``home/.data``."""
    rng, folder = np.random.default_rng(0), home / ".data"
    folder.mkdir(parents=True)
    with open(folder / "jsb_chorales.pkl", "wb") as file:
        pickle.dump({"train": _chorales(20, rng), "valid": _chorales(6, rng), "test": _chorales(6, rng)}, file)
    np.savetxt(folder / "faces_training.csv", rng.integers(0, 256, (10, 64 * 64)), fmt="%d", delimiter=",")
    canvas = np.zeros((100, 50, 50), np.uint8)
    canvas[:, 10:24, 10:24] = rng.integers(0, 256, (100, 14, 14))
    np.savez_compressed(folder / "multi_mnist_uint8.npz", x=canvas, y=np.array([[1]] * 99 + [[1, 2]], dtype=object))
    _mnist(folder / "MNIST", rng)
    hours = 2700
    counts = torch.from_numpy(rng.poisson(20.0, (hours, 4, 4))).float()
    ridership = {"stations": ["EMBR", "12TH", "16TH", "19TH"], "start_date": datetime.datetime(2011, 1, 1), "counts": counts}
    torch.save(ridership, folder / "bart_full.pkl")


def _chorales(count, rng):
    lengths = rng.integers(6, 15, count)
    sequences = [torch.from_numpy(rng.random((length, 88)) < 0.05).float() for length in lengths]
    return {"sequence_lengths": torch.from_numpy(lengths), "sequences": sequences}


def _mnist(folder, rng):
    """As many digits as there are, noise inside a margin."""
    folder.mkdir()
    for name, rows in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((rows, 28, 28), np.uint8)
        images[:, 6:22, 6:22] = rng.integers(0, 256, (rows, 16, 16), np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
        labels = np.arange(rows, dtype=np.uint8) % 10
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, rows) + labels.tobytes())
