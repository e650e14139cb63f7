"""Every public name is documented, with an example; the doctests run them."""

import ast
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest

import pyroae as pa

FUNCTIONS = "recipes", "plots", "proposals", "data"  # modules whose functions are public too; the others' help their classes
HOME = {"objectives": "pyroae.objectives"}
HELPERS = "TransformedPosterior", "Scheduled"  # classes that no person makes


def public():
    """Every public class and function, by the name that a person types."""
    found = {f"pa.{name}": getattr(pa, name) for name in pa.__all__ if not inspect.ismodule(getattr(pa, name))}
    for name in pa.__all__:
        module = getattr(pa, name)
        listed = getattr(module, "__all__", None)
        for inner, each in vars(module).items() if inspect.ismodule(module) else ():
            if inner in HELPERS or (listed and inner not in listed):
                continue
            kind = inspect.isclass(each) or inspect.isfunction(each) and name in FUNCTIONS
            if kind and not inner.startswith("_") and each.__module__.startswith(HOME.get(name, module.__name__)):
                found[f"pa.{name}.{inner}"] = each
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_is_and_shows_it(name):
    said = inspect.getdoc(PUBLIC[name]) or ""
    assert len(said.split()) >= 3 and ">>>" in said, f"{name} has no docstring with an example"


def test_all_parts_are_among_them():
    assert {
        "pa.priors.VampPrior",
        "pa.nets.Conv",
        "pa.objectives.IWAE",
        "pa.plots.calibration",
        "pa.recipes.vae",
        "pa.fit",
    } <= PUBLIC.keys()


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
