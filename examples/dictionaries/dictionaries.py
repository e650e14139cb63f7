"""Sparse dictionaries of activations: explained variance against active units, beside the package ``dictionary-learning``.

    python activations.py activations.npy 200000
    python dictionaries.py pareto activations.npy TopK --ks "[8,32]"    # one line per number of active units
    python dictionaries.py peer activations.npy TopK --ks "[8,32]"      # the same rows and steps with dictionary-learning
    python dictionaries.py stream FOLDER                                # 10 million synthetic rows from disk

``OMP_NUM_THREADS=1`` is meant for the times, which are processor time.
"""

import time
from pathlib import Path

import numpy as np
import torch

ATOMS, BATCH, EPOCHS, RATE, HELD_OUT = 1024, 256, 2, 2e-3, 10_000
JUMP = {8: 4.0, 32: 0.4, 100: 0.05}  # weights of the penalties, by the number of active units that they aim at
GATED = {8: 10.0, 32: 3.0}


def rows(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out rows, centred, with a mean square of 1."""
    x = torch.from_numpy(np.load(path).astype(np.float32))
    x -= x.mean(0)
    x /= x.square().mean().sqrt()
    return x[HELD_OUT:], x[:HELD_OUT]


def line(name: str, k: int, l0: float, explained: float, dead: float, milliseconds: float) -> str:
    """A row of the table."""
    return f"| {name} | {k} | {l0:.1f} | {explained:.2%} | {dead:.1%} | {milliseconds:.1f} |"


def pareto(path: str, kind: str, ks: list[int] = [8, 32], rate: float = RATE, atoms: int = ATOMS, epochs: int = EPOCHS):
    """Train a posterior of each size."""
    import pyroae as pa

    train, test = rows(path)
    likelihood = pa.likelihoods.Normal(train.shape[1], scale=0.5**0.5)  # -log p(x|z) is the squared error and a constant
    for k in ks:
        parts = {
            "TopK": lambda k=k: {"posterior": pa.posteriors.TopK(k=k)},
            "BatchTopK": lambda k=k: {"posterior": pa.posteriors.BatchTopK(k=k)},
            "JumpReLU": lambda k=k: {
                "posterior": pa.posteriors.JumpReLU(threshold=1.0),
                "objective": pa.Penalised(pa.penalties.L0(JUMP[k])),
            },
            "Gated": lambda k=k: {"posterior": pa.posteriors.Gated(), "objective": pa.Penalised(pa.penalties.GatedSparsity(GATED[k]))},
        }[kind]()
        torch.manual_seed(0)
        ae = pa.recipes.dictionary(train, latent_dim=atoms, k=k).replace(likelihood=likelihood, **parts)
        pa.fit(ae, train[: 20 * BATCH], epochs=1, batch_size=BATCH, lr=1e-12, progress=False)  # compiles
        start = time.process_time()
        pa.fit(ae, train, epochs=epochs, batch_size=BATCH, lr=rate, compile=pa.Step(clip=1.0), progress=False, seed=0)
        steps = epochs * -(-len(train) // BATCH)
        found = pa.sparsity(ae, test)
        print(line(f"pyroae, {kind}", k, found.l0, found.explained, found.dead, 1000 * (time.process_time() - start) / steps), flush=True)


@torch.no_grad()
def scores(encode, decode, test: torch.Tensor) -> tuple[float, float, float]:
    """L0, explained variance and share of dead units, as ``pa.sparsity`` computes them."""
    z = encode(test)
    error, spread = (test - decode(z)).double().square().sum(), (test - test.mean(0)).double().square().sum()
    return (z != 0).sum(1).double().mean().item(), 1 - (error / spread).item(), (z == 0).all(0).double().mean().item()


def peer(path: str, kind: str, ks: list[int] = [8, 32], rate: float = RATE):
    """The same with the trainers of ``dictionary-learning``."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    train, test = rows(path)
    steps = EPOCHS * -(-len(train) // BATCH)
    shared = {"steps": steps, "activation_dim": train.shape[1], "dict_size": ATOMS, "layer": 3, "lm_name": "", "lr": rate, "seed": 0}
    shared |= {"device": "cpu", "warmup_steps": 50}
    for k in ks:
        trainer = {
            "TopK": lambda k=k: TopKTrainer(k=k, threshold_start_step=100, **shared),
            "BatchTopK": lambda k=k: BatchTopKTrainer(k=k, threshold_beta=0.99, threshold_start_step=100, **shared),
            "JumpReLU": lambda k=k: JumpReluTrainer(target_l0=k, sparsity_warmup_steps=100, bandwidth=0.1, **shared),
            "Gated": lambda k=k: GatedSAETrainer(l1_penalty=GATED[k], sparsity_warmup_steps=100, **shared),
        }[kind]()
        start, step = time.process_time(), 0
        for _ in range(EPOCHS):
            for batch in train[torch.randperm(len(train))].split(BATCH):
                trainer.update(step, batch)
                step += 1
        found = scores(trainer.ae.encode, trainer.ae.decode, test)
        print(line(f"dictionary-learning, {kind}", k, *found, 1000 * (time.process_time() - start) / step), flush=True)


def stream(folder: str, n: int = 10_000_000, d: int = 384, atoms: int = 64, active: int = 4, block: int = 250_000):
    """Write rows with ``active`` of ``atoms`` known atoms as float16, find the atoms in one pass from disk, and delete the file."""
    import pyroae as pa

    path, random = Path(folder) / "rows.npy", torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(atoms, d, generator=random), dim=1)
    start = time.perf_counter()
    try:
        file = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
        for first in range(0, n, block):
            places = torch.rand(block, atoms, generator=random).topk(active).indices
            z = torch.zeros(block, atoms).scatter(1, places, 1 + torch.rand(block, active, generator=random))
            x = z @ truth + 0.02 * torch.randn(block, d, generator=random)
            file[first : first + block] = x[: n - first].half().numpy()
        file.flush()
        del file
        written = time.perf_counter() - start
        data = pa.data.load(str(path))
        torch.manual_seed(0)
        likelihood = pa.likelihoods.Normal(d, scale=0.1)
        ae = pa.recipes.dictionary(data, latent_dim=2 * atoms, k=active).replace(likelihood=likelihood)
        history = pa.fit(ae, data.train, epochs=1, batch_size=1024, lr=2e-3, progress=False, seed=0)
        found, atoms_found = pa.sparsity(ae, data.test), ae.decoder[-1].atoms.detach()
        cosine = (truth @ atoms_found).max(1).values
        print(f"{n:,} rows of {d} numbers, {path.stat().st_size / 1e9:.1f} GB, written in {written:.0f} s")
        seconds, lowest = history["seconds"][-1], cosine.min()
        print(f"one pass in {seconds:.0f} s; {found}; cosine with the true atoms {cosine.mean():.4f}, lowest {lowest:.4f}")
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli([pareto, peer, stream])
