"""Does unsupervised pretraining help? Classifiers from few labels and many, with and without it.

uv run python examples/pretraining.py                                                       # digits, a minute
PYROAE_DATA=... python examples/pretraining.py --data mnist --hidden "[500,500]" --latent_dim 500 --few "[100,1000]" --epochs 6 --steps 1500
"""

import json
from pathlib import Path

import torch
from reproduce.classifier import fine_tune

import pyroae as pa


def main(
    data: str = "digits",
    hidden: list[int] = [200, 100],
    latent_dim: int = 50,
    few: list[int] = [100, 500],
    epochs: int = 50,
    steps: int = 2000,
    seed: int = 0,
    only: list[str] = [],
    out: str = "pretraining.json",
):
    """Print the test error of classifiers that start at random, from a deep autoencoder, and from a pretrained stack.

    The networks are the same, with sigmoid units; the autoencoders see all the data without labels. "whole" is trained at once,
    "stack" layer by layer, with and without noise at each layer's input, for as many epochs a layer.

    Args:
        data: digits, mnist or fashion-mnist.
        hidden: widths of the hidden layers.
        latent_dim: width of the top.
        few: how many labels, beside all of them.
        epochs: passes over the data without labels, for each layer.
        steps: of fine-tuning on labels, at the least 5 epochs.
        seed: of initial weights, noise and order.
        only: names of the starts; by default all.
        out: the table as JSON, written anew after each row.
    """
    images = pa.data.load(data)
    common = {"seed": seed, "progress": False}
    started = {}
    for name, noise in {"random start": None, "whole": None, "stack": None, "denoising stack": pa.corruption.Masking(0.25)}.items():
        if only and name not in only:
            continue
        torch.manual_seed(seed)
        started[name] = ae = pa.Autoencoder(
            prior=pa.priors.Flat(latent_dim, support="unit_interval"),
            likelihood=pa.likelihoods.Normal(tuple(images.event_shape), scale=1.0),
            posterior=pa.posteriors.Delta(),
            encoder=pa.nets.MLP(hidden, "Sigmoid"),
            decoder=pa.nets.MLP(hidden[::-1], "Sigmoid"),
        )
        if name == "whole":
            pa.fit(ae, images.train, epochs=epochs * (len(hidden) + 1), **common)
        elif name != "random start":
            pa.pretrain(ae, images.train, corruption=noise, epochs=epochs, **common)
    settings, rows = {"data": data, "hidden": hidden, "latent_dim": latent_dim, "epochs": epochs, "steps": steps, "seed": seed}, []
    for count in [*few, len(images.train)]:
        kept = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))[:count]
        labelled = images.train[kept]
        passes = max(5, steps * 128 // count if count > 128 else steps)
        for name, ae in started.items():
            torch.manual_seed(seed)
            classifier = fine_tune(ae, labelled, classes=10, epochs=passes, **common)
            rows.append({"labels": count, "start": name, "test error": classifier.error(images.test)})
            print(f"{count:6} labels, {name:16} test error {rows[-1]['test error']:.2%}", flush=True)
            Path(out).write_text(json.dumps({"settings": settings, "rows": rows}, indent=2))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
