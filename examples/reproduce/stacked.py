"""Vincent et al. 2010: a classifier from a stack of denoising autoencoders against one from a stack of plain ones.

PYROAE_DATA=... uv run python examples/reproduce/stacked.py

Three layers of tied sigmoid units, each pretrained on the codes below it, masking noise at each layer's input or none; then all
of it is trained on labels, at a rate that falls to 0 along a cosine. The lowest layer learns from grey levels by cross-entropy, the
others from codes by squared error. The paper chooses units, noise, rates and passes by validation data; here they are as given.
"""

import functools
import time
from pathlib import Path

import torch
from classifier import fine_tune
from common import RESULTS, CrossEntropy, error, going_on, record, recorded

import pyroae as pa


def main(
    units: int = 1000,
    noise: float = 0.25,
    epochs: int = 15,
    labels: int = 20,
    seed: int = 0,
    quick: bool = False,
    out: str = str(RESULTS),
    runs: str = "runs",
):
    """Pretrain, fine-tune and record the test errors of both stacks.

    Args:
        units: of each layer.
        noise: share of the inputs that a denoising layer does without.
        epochs: passes over the data, for each layer.
        labels: passes in fine-tuning.
        seed: of initial weights, noise and order.
        quick: digits and a few passes, to see that it runs.
        out: folder of the records.
        runs: folder of the checkpoints.
    """
    if quick:
        units, epochs, labels = 8, 1, 2
    settings = {key: value for key, value in locals().items() if key not in ("out", "runs")}
    images = pa.data.load("digits" if quick else "mnist", validation=1 / 6)
    for name, corruption in {"SAE-3": None, "SDAE-3": pa.corruption.Masking(noise)}.items():
        if recorded(out, name, settings):
            continue
        start = time.perf_counter()
        torch.manual_seed(seed)
        ae = pa.Autoencoder(
            prior=pa.priors.Flat(units, support="unit_interval"),
            likelihood=CrossEntropy(tuple(images.event_shape)),
            posterior=pa.posteriors.Delta(),
            encoder=pa.nets.MLP([units, units], "Sigmoid"),
            decoder=pa.nets.Tied("Sigmoid"),
        )
        pa.pretrain(ae, images.train, corruption=corruption, epochs=epochs, seed=seed)
        classifier = fine_tune(
            ae,
            images.train,
            epochs=labels,
            batch_size=100,
            scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=labels),
            seed=seed,
            **going_on(Path(runs) / name, settings),
        )
        row = error(classifier, images.test) | {"seconds": time.perf_counter() - start}
        record(out, name, row | {"note": f"{units} units a layer"}, settings)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
