"""Every public name is documented, with an example; the doctests run them."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pyroae as pa
from pyroae import registry

NAMESPACES = [name for name in dir(pa) if inspect.ismodule(getattr(pa, name))]
PUBLIC = {f"pa.{name}": getattr(pa, name) for name in dir(pa) if name not in NAMESPACES}
PUBLIC |= {f"pa.{space}.{name}": getattr(getattr(pa, space), name) for space in NAMESPACES for name in dir(getattr(pa, space))}


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_is_and_shows_it(name):
    said = inspect.getdoc(PUBLIC[name]) or ""
    assert len(said.split()) >= 3 and ">>>" in said, f"{name} has no docstring with an example"


def test_all_namespaces_and_functions_are_public():
    model = {"conditions", "corruption", "likelihoods", "nets", "posteriors", "priors"}
    assert set(NAMESPACES) == model | {
        "callbacks",
        "data",
        "objectives",
        "penalties",
        "plots",
        "proposals",
        "recipes",
        "schedules",
        "sklearn",
    }
    assert {"pa.priors.VampPrior", "pa.nets.Conv", "pa.objectives.IWAE", "pa.plots.calibration", "pa.fit"} <= PUBLIC.keys()


@pytest.mark.parametrize("space", ["", *NAMESPACES])
def test_dir_lists_public_names_only(space):
    module = getattr(pa, space) if space else pa
    assert dir(module) == sorted(set(module.__all__))
    for name in dir(module):
        value = getattr(module, name)
        assert not name.startswith("_") and (space == "" or value.__module__.startswith("pyroae.")), name


def test_every_registered_class_is_public():
    """A class that a file can name has a public name: its kind's namespace lists it."""
    kinds = ["conditions", "corruption", "likelihoods", "nets", "objectives", "penalties", "posteriors", "priors", "schedules"]
    registered = {(kind, name) for kind in kinds for name, cls in registry.members(kind).items() if cls.__module__.startswith("pyroae.")}
    assert {f"{kind}.{name}" for kind, name in registered if name not in dir(getattr(pa, kind))} == set()


USER = """
import pyroae as pa
from typing_extensions import reveal_type
digits = pa.data.load("digits")
nets = pa.nets.MLP(128), pa.nets.MLP([128, 64])
vae = pa.Autoencoder(pa.priors.Normal(8), pa.likelihoods.Bernoulli(64), pa.posteriors.Normal(), *nets)
{}
"""
TYPES = {  # an expression and the type that a type checker shows
    "vae": "Autoencoder",
    "vae.replace(prior=pa.priors.Laplace(8, scale=0.1))": "Autoencoder",
    "vae.encode(digits.test.x[:3])": "Distribution",
    "digits.train": "Split",
    "pa.priors.VampPrior": "<class 'VampPrior'>",
    "pa.priors.Laplace(8)": "Laplace",
    "pa.objectives.IWAE(50)": "IWAE",
    "pa.penalties.L2(0.1)": "L2",
    "pa.schedules.Linear(100)": "Linear",
    "pa.corruption.Masking()": "Masking",
    "pa.conditions.Labels(10)": "Labels",
    "pa.proposals.Laplace()": "Laplace",
    "pa.callbacks.ELBOTerms": "<class 'ELBOTerms'>",
    "pa.recipes.vae(digits)": "Autoencoder",
    "pa.fit(vae, digits.train, epochs=1)": "History",
    "pa.log_likelihood(vae, digits.test).mean": "float",
    "pa.load('vae.safetensors')": "Autoencoder",
}
WRONG = {  # a wrong call and the rule that it breaks
    "pa.fit(vae, digits.train, epoch=3)": "unknown-argument",
    "pa.fit(vae, digits.train, epochs='three')": "invalid-argument-type",
    "pa.priors.Normal('eight')": "invalid-argument-type",
    "pa.priors.Norml(8)": "missing-attribute",
    "pa.log_likelihood(vae, digits.test, particles='many')": "invalid-argument-type",
    "pa.log_likelyhood(vae, digits.test)": "missing-attribute",
    "pa.Autoencoder(pa.priors.Normal(8))": "missing-argument",
}


def test_types_are_known_to_a_type_checker(tmp_path):
    """A script of a user's in one run of ``ty``: each line after the common ones has the expected type or the expected error."""
    lines = [*(f"reveal_type({expression})" for expression in TYPES), *WRONG]
    script = tmp_path / "script.py"
    script.write_text(USER.format("\n".join(lines)))
    command = [
        sys.executable,
        "-m",
        "ty",
        "check",
        str(script),
        "--output-format",
        "concise",
        "--python",
        sys.executable,
        "--color",
        "never",
    ]
    output = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    found = dict(re.findall(r"script\.py:(\d+):\d+: (.*)", output))
    first = USER.count("\n", 0, USER.index("{}")) + 1
    shown = {line: found.get(str(first + i), "nothing") for i, line in enumerate(lines)}
    expected = [f"Revealed type: `{each}`" for each in TYPES.values()] + [f"[{rule}]" for rule in WRONG.values()]
    assert [line for line, text in zip(lines, expected) if text not in shown[line]] == [], output
    assert all(int(number) >= first for number in found), output


PACKAGES = {"PIL": "pillow", "pyro": "pyro-ppl", "sklearn": "scikit-learn", "umap": "umap-learn", "yaml": "pyyaml"}  # module -> package


def test_every_package_that_is_imported_is_a_dependency_and_every_dependency_is_imported():
    """Extras may be imported by those who read files or draw graphs for us, such as pandas; the command line is argparse's alone."""
    folder = Path(pa.__file__).parent
    declared = tomllib.loads((folder.parent / "pyproject.toml").read_text())["project"]
    needed, extras = (
        {re.match(r"[\w-]+", each)[0] for each in listed}
        for listed in (declared["dependencies"], sum(declared["optional-dependencies"].values(), []))
    )
    nodes = [node for path in folder.rglob("*.py") if path.name != "conftest.py" for node in ast.walk(ast.parse(path.read_text()))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    found = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    packages = {PACKAGES.get(name, name) for name in found}
    assert packages - needed <= extras and needed - packages == set()
    assert "jsonargparse" not in needed | extras
