"""What others have published, by the name of the record in results/ that stands beside it."""

from typing import NamedTuple


class Published(NamedTuple):
    """A figure, what it is of and where it stands; nats per example, or test errors in percent."""

    result: str
    source: str
    published: float | None = None  # None where an order or a closed form is what is to be met
    unit: str = "nats"


_BURDA = {  # (stochastic layers, binarization): {objective and k: test log p(x)}; with k = 1 IWAE is the VAE
    (1, "static"): {"iwae 1": -88.71, "vae 5": -88.83, "vae 50": -89.05, "iwae 5": -87.63, "iwae 50": -87.10},
    (1, "dynamic"): {"iwae 1": -86.76, "vae 5": -86.47, "vae 50": -86.35, "iwae 5": -85.54, "iwae 50": -84.78},
    (2, "static"): {"iwae 1": -88.08, "vae 5": -87.63, "vae 50": -87.86, "iwae 5": -86.17, "iwae 50": -85.32},
    (2, "dynamic"): {"iwae 1": -85.33, "vae 5": -85.01, "vae 50": -84.78, "iwae 5": -83.89, "iwae 50": -82.90},
}
_DREG = {("static", 5): None, ("static", 50): None, ("dynamic", 1): -86.08, ("dynamic", 5): -84.90, ("dynamic", 50): -84.32}
_RIFAI = {"contractive": 1.14, "denoising-Gaussian": 1.18, "denoising-binary": 1.57, "weight-decay": 1.68, "plain": 1.78}
_NOROUZI = {  # (prior, data binarized whenever used): test log p(x)
    ("Normal", "mnist"): -84.45,
    ("VampPrior", "mnist"): -82.43,
    ("Normal", "fashion-mnist"): -228.70,
    ("VampPrior", "fashion-mnist"): -227.35,
}


def _burda(layers: int, binarize: str, key: str, figure: float) -> tuple[str, Published]:
    objective, k = key.split()
    what = f"{objective.upper()}, k = {k}, {layers} stochastic layer{'s'[: layers - 1]}, {binarize} MNIST"
    return f"{objective}-k{k}-{layers}-layer-{binarize}", Published(what, "Burda et al. 2016, table 1", figure)


PUBLISHED: dict[str, Published] = {
    "vae": Published("VAE 784-400-40, static MNIST, 200 particles", "pythae's table", -89.78),
    **dict(_burda(*kind, key, figure) for kind, figures in _BURDA.items() for key, figure in figures.items()),
    **{
        f"iwae-k{k}-1-layer-{kind}-dreg": Published(f"DReG, k = {k}, 1 stochastic layer, {kind} MNIST", "a re-implementation", figure)
        for (kind, k), figure in _DREG.items()
    },
    "priors-Normal": Published("Normal prior, gated 300-300, static MNIST", "Tomczak & Welling 2018: the worst of three"),
    "priors-GaussianMixture": Published("GaussianMixture of 500", "Tomczak & Welling 2018: in between"),
    "priors-VampPrior": Published("VampPrior of 500", "Tomczak & Welling 2018, table 1", -85.57),
    **{
        f"priors-{prior}-{data}": Published(f"{prior} prior, 300-300, dynamic {data}", "Norouzi et al. 2020", figure)
        for (prior, data), figure in _NOROUZI.items()
    },
    **{
        f"contractive-{kind}": Published(f"{kind.replace('-', ' ')}, 1,000 tied units, MNIST", "Rifai et al. 2011", figure, "% wrong")
        for kind, figure in _RIFAI.items()
    },
    "SDAE-3": Published("stacked denoising autoencoders, 3 layers, MNIST", "Vincent et al. 2010", 1.28, "% wrong"),
    "SAE-3": Published("stacked autoencoders, 3 layers, MNIST", "Vincent et al. 2010", 1.40, "% wrong"),
    "ppca": Published("linear VAE = probabilistic PCA, MNIST, 784-10", "Tipping & Bishop 1999: the closed form"),
    "annealing": Published("AIS less IWAE-5,000 on the VAE of k = 1", "Cremer et al. 2018, Wu et al. 2017"),
}
