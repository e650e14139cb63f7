"""The table of names: every class that a file or a command line can name, by kind. Nothing else is ever made from a file."""

import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from pyro import distributions as dist
from pyro import infer
from pyro.distributions import transforms
from torch import nn, optim
from torch.optim import lr_scheduler

from .checks import did_you_mean, short

T = TypeVar("T")
_TABLE: dict[str, dict[str, type]] = {}  # kind -> name in files -> class: "Laplace"; "my_parts.Cauchy" of the user's own
_BASES: dict[str, type] = {}  # kind -> what its classes are subclasses of
_NAMES: dict[type, str] = {}  # class -> "kind.name"


class Part:
    """Base of everything that a model is made of: ``part.arguments`` holds what its constructor was given."""

    arguments: dict[str, Any]

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        for name in kwargs.keys() - signature.parameters.keys():
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
                raise TypeError(f"{cls.__name__} has no argument {name!r}" + did_you_mean(name, list(signature.parameters)[1:]))
        _, *given = signature.bind_partial(self, *args, **kwargs).arguments.items()
        self.__dict__["arguments"] = arguments = {}
        for name, value in given:
            arguments.update(value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        return self

    def replace(self, **changes) -> Self:
        """A new part of the same class with some arguments changed."""
        return type(self)(**{**self.arguments, **changes})


def register_base(kind: str) -> Callable[[type[T]], type[T]]:
    """Decorate the base class of a kind of objects, such as ``Prior`` of ``"priors"``."""

    def enter(cls: type[T]) -> type[T]:
        _BASES[kind] = cls
        _TABLE.setdefault(kind, {})
        return cls

    return enter


def register(kind: str) -> Callable[[type[T]], type[T]]:
    """Decorate a class of your own, so that a saved model can name it: once its module is imported, ``pa.load`` finds it.

    On the command line ``--likelihood my_parts.Cauchy`` and ``--use my_parts`` import the module from the current folder.

    Args:
        kind: ``"priors"``, ``"likelihoods"``, ``"posteriors"``, ``"nets"``, ``"conditions"``, ``"corruption"``, ``"objectives"``,
            ``"penalties"`` or ``"schedules"``.

    Raises:
        ValueError: another kind, a class that is none of that kind, or the name of a class of pyroae's.

    >>> import pyroae as pa
    >>> from pyro import distributions as dist
    >>> @pa.register("likelihoods")
    ... class RegisterExample(pa.likelihoods.Likelihood):
    ...     def __init__(self, event_shape=None, scale: float | str = "learned"):
    ...         super().__init__(dist.Cauchy, event_shape, scale=scale)
    >>> RegisterExample(3).size
    3
    """

    def enter(cls: type[T]) -> type[T]:
        if kind not in _BASES:
            raise ValueError(f"register: there is no kind {kind!r}" + did_you_mean(kind, _BASES))
        if not issubclass(cls, _BASES[kind]):
            raise ValueError(f"register: expected a subclass of {_BASES[kind].__name__} for {kind!r}, got {cls.__name__}")
        name = cls.__name__ if _own(cls) else f"{cls.__module__}.{cls.__name__}"
        if not _own(cls) and cls.__name__ in _TABLE[kind]:
            existing = _TABLE[kind][cls.__name__]
            raise ValueError(f"register: {kind} has a {cls.__name__} already, {existing.__module__}.{cls.__name__}; choose another name")
        _TABLE[kind][name] = cls
        _NAMES[cls] = f"{kind}.{name}"
        return cls

    return enter


def members(kind: str) -> dict[str, type]:
    """The classes of a kind, by the name that files have for them: ``Laplace``, or ``my_parts.Cauchy`` for a class of the user's own."""
    return _TABLE[kind]


def base(kind: str) -> type:
    """The class that all of a kind are subclasses of."""
    return _BASES[kind]


def kinds_of(annotation: Any) -> list[str]:
    """The kinds whose base class an annotation is."""
    return [kind for kind, base in _BASES.items() if base is annotation or (kind == "distributions" and annotation is dist.Distribution)]


def name_of(cls: type) -> str | None:
    """``"priors.Laplace"``, the name that a file has for a class; of a class of the user's own with its module inside."""
    return _NAMES.get(cls)


def find(kind: str, name: str) -> type:
    """The class of that kind with that name: ``"Laplace"``, ``"priors.Laplace"``, ``"my_parts.Mine"`` or ``"priors.my_parts.Mine"``.

    The bare name of a class of the user's own, ``"Mine"``, is enough where only one module has registered one.

    Raises:
        ValueError: there is none; names the nearest, or for a class of the user's own the module to import. Or there are several.
    """
    path = name.removeprefix(f"{kind}.")
    if path in _TABLE[kind]:
        return _TABLE[kind][path]
    module, _, last = path.rpartition(".")
    if module and len(path) <= 100 and path.replace(".", "").isidentifier():
        raise ValueError(
            f"there is no {short(name)} among the {kind} of pyroae, Pyro and torch; if {module} is a module of your own that you trust, "
            f"import it first, with @pa.register({kind!r}) above the class; on the command line add --use {module}"
        )
    same = [full for full in _TABLE[kind] if full.endswith(f".{last}")]
    if len(same) > 1:
        raise ValueError(f"expected one {singular(kind)} {short(name)}, got {len(same)}: say which, {' or '.join(sorted(same))}")
    if not same:
        raise ValueError(f"there is no {singular(kind)} {short(name)}" + did_you_mean(name, _TABLE[kind]))
    return _TABLE[kind][same[0]]


def singular(kind: str) -> str:
    """What one of a kind is called.

    >>> singular("priors"), singular("penalties")
    ('prior', 'penalty')
    """
    return {"nets": "network", "penalties": "penalty"}.get(kind, kind.removesuffix("s"))


def use(module: str):
    """Import a module that the user has named, from the current folder too, and register the parts that it defines.

    Raises:
        ValueError: there is no such module, or importing it fails.
    """
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # of the user's own code, which may raise anything
        raise ValueError(f"the module {module} cannot be imported: {type(error).__name__}: {error}") from error
    for cls in list(vars(imported).values()):
        if isinstance(cls, type) and cls.__module__ == imported.__name__ and cls not in _NAMES and not cls.__name__.startswith("_"):
            if any(issubclass(cls, base) for base in _BASES.values()):
                register_own(cls)


def register_own(cls: type) -> str:
    """Register a class under the kind whose base it has; returns the name that files have for it."""
    register(next(kind for kind, base in _BASES.items() if issubclass(cls, base)))(cls)
    return _NAMES[cls]


class Plain:
    """The type of an argument of Pyro's or torch's that states none: numbers, text, lists, tensors, distributions and transforms."""


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments that a file can give, each with its type; one without a type has that of its default, or ``Plain``.

    Arguments of Pyro's distributions and transforms are all ``Plain``: they take tensors and numbers alike, whatever they state.
    """
    plain = _NAMES.get(cls, "").partition(".")[0] in ("distributions", "transforms")
    hints, found = {} if plain else _hints(cls), {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if name not in _HIDDEN and parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            stated = Plain if plain else _TYPES.get(name) or hints.get(name) or _type_of(parameter.default)
            found[name] = parameter.replace(annotation=stated)
    return found


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types that a constructor states; torch writes some as text, which Python evaluates."""
    try:
        return typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):
        return {}


def _type_of(default: Any) -> Any:
    kinds = {bool: bool, int: float, float: float, str: str}
    return kinds.get(type(default), Plain)


def _own(cls: type) -> bool:
    """Whether a class is pyroae's, Pyro's or torch's."""
    return cls.__module__.partition(".")[0] in ("pyroae", "pyro", "torch")


_HIDDEN = set(  # arguments that are not for files: what others give, how something is computed, what is deprecated
    """validate_args params optimizer verbose jit_options ignore_jit_warnings retain_graph max_iarange_nesting capturable differentiable
    maximize""".split()
)
_TYPES = {"num_particles": int, "max_plate_nesting": int}  # which Pyro leaves open
_THIRD_PARTY: dict[str, tuple[Any, type | None, str]] = {  # kind -> where from, base class, names
    "distributions": (
        dist,
        torch.distributions.Distribution,
        """AffineBeta AsymmetricLaplace Bernoulli Beta BetaBinomial Binomial Categorical Cauchy Chi2 ContinuousBernoulli Delta Dirichlet
        DirichletMultinomial Exponential ExtendedBetaBinomial ExtendedBinomial FisherSnedecor FoldedDistribution Gamma GammaPoisson
        GeneralizedPareto Geometric Gumbel HalfCauchy HalfNormal Independent InverseGamma Kumaraswamy LKJCholesky Laplace LogNormal
        LogNormalNegativeBinomial Logistic LogisticNormal LowRankMultivariateNormal MaskedMixture MixtureOfDiagNormals
        MixtureOfDiagNormalsSharedCovariance MixtureSameFamily Multinomial MultivariateNormal MultivariateStudentT NegativeBinomial
        Normal OneHotCategorical OneHotCategoricalStraightThrough OrderedLogistic Pareto Poisson ProjectedNormal RelaxedBernoulli
        RelaxedBernoulliStraightThrough RelaxedOneHotCategorical RelaxedOneHotCategoricalStraightThrough SineBivariateVonMises
        SineSkewed SkewLogistic SoftAsymmetricLaplace SoftLaplace Stable StableWithLogProb StudentT TransformedDistribution
        TruncatedPolyaGamma Uniform VonMises VonMises3D Weibull Wishart ZeroInflatedDistribution ZeroInflatedNegativeBinomial
        ZeroInflatedPoisson""",
    ),
    "transforms": (
        transforms,
        torch.distributions.Transform,
        """AbsTransform AffineTransform CholeskyTransform ComposeTransform CorrCholeskyTransform DiscreteCosineTransform ELUTransform
        ExpTransform HaarTransform IndependentTransform LeakyReLUTransform LowerCholeskyTransform OrderedTransform Permute
        PositivePowerTransform PowerTransform ReshapeTransform SigmoidTransform SimplexToOrderedTransform SoftmaxTransform
        SoftplusLowerCholeskyTransform SoftplusTransform StickBreakingTransform TanhTransform""",
    ),
    "objectives": (
        infer,
        infer.ELBO,
        """RenyiELBO ReweightedWakeSleep TraceEnum_ELBO TraceGraph_ELBO TraceMeanField_ELBO TraceTMC_ELBO Trace_ELBO""",
    ),
    "optimizers": (optim, optim.Optimizer, "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD"),
    "schedulers": (
        lr_scheduler,
        lr_scheduler.LRScheduler,
        """ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR PolynomialLR
        ReduceLROnPlateau StepLR""",
    ),
    "activations": (
        nn,
        None,
        """CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU
        Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink""",
    ),
}

for _kind, (_home, _base, _names) in _THIRD_PARTY.items():
    _TABLE.setdefault(_kind, {})
    if _base is not None:
        register_base(_kind)(_base)
    for _name in _names.split():
        _cls = getattr(_home, _name)
        _TABLE[_kind][_name] = _cls
        _NAMES[_cls] = f"{_kind}.{_name}"
        _hints(_cls)  # now, so that nothing is evaluated while a file is read
