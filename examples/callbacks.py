"""Callbacks for the tools of others: Weights & Biases, MLflow, and early stopping on held-out log p(x).

uv run python examples/callbacks.py                  # early stopping alone, half a minute
uv run --with wandb python examples/callbacks.py --to wandb
uv run --with mlflow python examples/callbacks.py --to mlflow
"""

import math

import pyroae as pa


class WandB:
    """Logs every number of every epoch to Weights & Biases; ``settings`` go to ``wandb.init``."""

    def __init__(self, **settings):
        import wandb

        self.run = wandb.init(**settings)

    def __call__(self, epoch):
        self.run.log({name: value for name, value in epoch.items() if math.isfinite(value)}, step=epoch.step)


class MLflow:
    """Logs every number of every epoch to the active run of MLflow."""

    def __call__(self, epoch):
        import mlflow

        mlflow.log_metrics({name: value for name, value in epoch.items() if math.isfinite(value)}, step=epoch.step)


class EarlyStopping:
    """Stops when log p(x) of held-out data has been no better for ``patience`` looks, and puts the best weights back.

    Args:
        x: held-out data.
        every: epochs between two looks.
        patience: looks.
        particles: importance samples for each example.
    """

    def __init__(self, x, every: int = 5, patience: int = 3, particles: int = 100):
        self.x, self.every, self.patience, self.particles = x, every, patience, particles
        self.best, self.weights, self.worse = -math.inf, None, 0

    def __call__(self, epoch):
        epoch["log p(x)"] = math.nan
        if epoch["epoch"] % self.every:
            return
        epoch["log p(x)"] = pa.log_likelihood(epoch.model, self.x, epoch.guide, particles=self.particles).mean
        self.worse += 1
        if epoch["log p(x)"] > self.best:
            self.best, self.worse = epoch["log p(x)"], 0
            self.weights = {name: weight.clone() for name, weight in epoch.model.state_dict().items()}
        if self.worse >= self.patience:
            epoch.model.load_state_dict(self.weights)
            raise pa.StopTraining


def main(to: str = "nowhere", epochs: int = 200, particles: int = 50, every: int = 5):
    """Train a VAE on digits until held-out log p(x) no longer improves.

    Args:
        to: where to log: nowhere, wandb or mlflow.
        epochs: at most.
        particles: importance samples for each example.
        every: epochs between two looks at log p(x).
    """
    digits = pa.data.load("digits", binarize="dynamic", validation=0.1)
    vae = pa.recipes.vae(digits)
    loggers = {"nowhere": lambda: [], "wandb": lambda: [WandB(project="pyroae")], "mlflow": lambda: [MLflow()]}[to]()
    stopping = EarlyStopping(digits.validation, every=every, particles=particles)
    history = pa.fit(vae, digits.train, epochs=epochs, callbacks=[stopping, *loggers])
    print(f"{len(history.rows)} epochs, best log p(x) {stopping.best:.2f} nats/example on validation data")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
