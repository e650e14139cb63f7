"""scikit-learn's interface to any recipe: ``pa.sklearn.Estimator`` works in ``Pipeline`` and ``GridSearchCV``."""

import copy
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from . import programs, storage
from .checks import did_you_mean
from .data import frames
from .evaluation.importance import Source, log_likelihood
from .evaluation.representation import codes
from .model.autoencoder import Autoencoder
from .recipes import RECIPES
from .training.fit import fit

__all__ = ["Estimator"]
_SEEDS = 2**31 - 1


class Estimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An autoencoder as a scikit-learn estimator: a transformer that is scored by held-out log p(x).

    ``transform`` gives E[z|x], ``inverse_transform`` the mean of p(x|z), ``score_samples`` log p(x) in nats and ``score`` its mean
    in nats per example, as ``pa.log_likelihood`` estimates it: in expectation a lower bound, tighter with more particles.
    Arrays have one likelihood for all columns; the columns of a DataFrame each have their own, as in ``pa.data.load``.
    Missing values (NaN) are allowed.

    Args:
        recipe: a name from ``pa.recipes``, a function of the training data (and of ``latent_dim`` and ``hidden`` if these are
            given) that returns an Autoencoder, or an Autoencoder, whose copy is trained.
        latent_dim: latent dimensions; by default the recipe's own.
        hidden: width of the hidden layer, or of several; by default the recipe's own.
        parts: parts that replace the recipe's, such as ``{"prior": pa.priors.Laplace(8)}``.
        elbo, epochs, batch_size, lr, device, compile: as for ``pa.fit``.
        particles: importance samples per example in ``score`` and ``score_samples``.
        proposal: of the importance samples, as for ``pa.log_likelihood``: the guide, which is fast and usually tight enough
            to rank models, or ``"auto"``, which a point posterior (Delta) needs.
        random_state: of initial weights, training, scores and samples.

    Attributes:
        autoencoder_: the trained Autoencoder, for everything else in pyroae.
        history_: the ``History`` of its training.

    Pickles hold the Autoencoder as the bytes of a ``pa.save`` file; networks of your own (``nn.Module``) cannot be pickled.

    >>> from sklearn.datasets import load_iris
    >>> x = load_iris().data
    >>> estimator = Estimator("vae", latent_dim=2, epochs=2, random_state=0).fit(x)
    >>> estimator.transform(x).shape, estimator.score_samples(x[:5]).shape
    ((150, 2), (5,))
    """

    feature_names_in_: np.ndarray  # scikit-learn sets it

    def __init__(
        self,
        recipe: str | Callable[..., Autoencoder] | Autoencoder = "vae",
        *,
        latent_dim: int | None = None,
        hidden: int | list[int] | None = None,
        parts: dict[str, Any] | None = None,
        elbo: Any = None,
        epochs: int = 20,
        batch_size: int = 128,
        lr: float | None = None,
        device: str = "auto",
        compile: Any = "auto",
        particles: int = 100,
        proposal: Source = "guide",
        random_state: int | np.random.RandomState | None = None,
    ):
        self.recipe, self.latent_dim, self.hidden, self.parts = recipe, latent_dim, hidden, parts
        self.elbo, self.epochs, self.batch_size, self.lr = elbo, epochs, batch_size, lr
        self.device, self.compile, self.random_state = device, compile, random_state
        self.particles, self.proposal = particles, proposal

    def fit(self, X: Any, y: Any = None) -> "Estimator":
        """Train on ``X`` of shape ``(N, columns)``; ``y`` is ignored.

        Raises:
            ValueError: invalid arguments or data, or a model with a condition, which needs labels for every call.
        """
        X, seed = self._validate(X, reset=True), self._seed()
        with programs.seeded(seed, torch.device("cpu")):
            ae = self._build(X)
        if (ae.condition is not None and not ae.condition.optional) or ae.inputs is not None:
            kind, data = ("inputs", "(x, u)") if ae.inputs is not None else ("a condition", "(x, y)")
            raise ValueError(f"Estimator: expected a model of x alone, but this one has {kind}; train it with pa.fit(ae, {data})")
        options = {name: getattr(self, name) for name in ("elbo", "epochs", "batch_size", "lr", "device", "compile")}
        self.history_ = fit(ae, X, **options, seed=seed, progress=False)
        self.autoencoder_, self._n_features_out = ae, ae.prior.code_shape.numel()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """E[z|x] of each row, ``(N, latent_dim)``, as by ``pa.codes``."""
        X = self._validate(X)
        return np.asarray(codes(self._model(X), X))

    def inverse_transform(self, Z: Any) -> Any:
        """The mean of p(x|z) (the mode of categories) of each row of ``Z``; a DataFrame if ``fit`` was given one."""
        check_is_fitted(self)
        ae = self.autoencoder_
        Z = check_array(Z, input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(f"Estimator.inverse_transform: expected Z with {self._n_features_out} columns, got {Z.shape[1]}")
        z = torch.tensor(Z, dtype=next(ae.parameters()).dtype, device=ae.device).reshape(len(Z), *ae.prior.code_shape)
        with torch.no_grad():
            return self._rows(ae.likelihood.mean_or_mode(ae.decode(z)))

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) of each row in nats, ``(N,)``; missing values are marginalised out.

        Raises:
            ValueError: the prior is improper, as in the recipe ``"autoencoder"``, so that log p(x) does not exist.
        """
        X = self._validate(X)
        ae, seed = self._model(X), self._seed()
        return log_likelihood(ae, X, particles=self.particles, proposal=self.proposal, seed=seed).values.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log p(x), nats per example; ``y`` is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> Any:
        """New rows: z from the prior, x from p(x|z), ``(n_samples, columns)``; a DataFrame if ``fit`` was given one."""
        check_is_fitted(self)
        with programs.eval_mode(self.autoencoder_, seed=self._seed()):
            return self._rows(self.autoencoder_.sample(n_samples))

    def _build(self, X: Any) -> Autoencoder:
        sizes = {name: value for name in ("latent_dim", "hidden") if (value := getattr(self, name)) is not None}
        recipe = self.recipe
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                raise ValueError(f"Estimator: there is no recipe {recipe!r}" + did_you_mean(recipe, RECIPES))
            recipe = RECIPES[recipe]
            if unknown := sizes.keys() - inspect.signature(recipe).parameters.keys():
                raise ValueError(f"Estimator: the recipe {recipe.__name__} has no argument {' or '.join(unknown)}; leave it out")
        if isinstance(recipe, Autoencoder):
            if sizes:
                raise ValueError(f"Estimator: an Autoencoder has its own sizes; leave {' and '.join(sizes)} out")
            ae = copy.deepcopy(recipe)
        else:
            ae = recipe(X, **sizes)
        if not isinstance(ae, Autoencoder):
            raise ValueError(f"Estimator: expected recipe to return an Autoencoder, got {type(ae).__name__}")
        return ae.replace(**self.parts) if self.parts else ae

    def _validate(self, X: Any, reset: bool = False) -> Any:
        """``X`` as input of the model, after scikit-learn's checks of columns and their names."""
        if not reset:
            check_is_fitted(self)
        if frames.is_frame(X) and not isinstance(X, pd.DataFrame):
            X = X.to_pandas()
        as_table = isinstance(X, pd.DataFrame) if reset else self._is_table
        if not as_table:
            return validate_data(
                self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", ensure_min_samples=1 + reset
            )
        validate_data(self, X, reset=reset, skip_check_array=True)
        if not isinstance(X, pd.DataFrame):
            X = pd.DataFrame(check_array(X, dtype=None, ensure_all_finite="allow-nan"), columns=self.feature_names_in_)
        return X

    @property
    def _is_table(self) -> bool:
        return self.autoencoder_.schema is not None and self.autoencoder_.schema.columns is not None

    def _model(self, X: Any) -> Autoencoder:
        """The trained model; if ``X`` has missing values, the same model for missing values."""
        return self.autoencoder_.with_missing() if np.asarray(pd.isna(X)).any() else self.autoencoder_

    def _rows(self, x: torch.Tensor) -> Any:
        return self.autoencoder_.schema.frame(x) if self._is_table else x.cpu().numpy()

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(_SEEDS))

    def __getstate__(self) -> dict[str, Any]:
        return {name: _Stored(value) if isinstance(value, Autoencoder) else value for name, value in super().__getstate__().items()}

    def __setstate__(self, state: dict[str, Any]):
        super().__setstate__({name: value.load() if isinstance(value, _Stored) else value for name, value in state.items()})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []  # codes are float64
        return tags


class _Stored:
    """An Autoencoder as the bytes of its file."""

    def __init__(self, ae: Autoencoder):
        with tempfile.TemporaryDirectory() as folder:
            storage.save(ae, path := Path(folder) / "model.safetensors")
            self.content = path.read_bytes()

    def load(self) -> Autoencoder:
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder) / "model.safetensors").write_bytes(self.content)
            return storage.load(path)


def __dir__() -> list[str]:
    return __all__
