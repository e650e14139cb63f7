"""How the package is laid out: imports point one way, and modelling and inference do not know of each other."""

import ast
from pathlib import Path

import pytest

import pyroae as pa

ROOT = Path(pa.__file__).parent
ORDER = [  # each row may import the rows above it, and its own
    {"checks", "sizes", "threads", "memory", "nested"},
    {"files", "registry", "bounded"},
    {"schema"},
    {"data"},
    {"model", "programs"},
    {"objectives"},
    {"training"},
    {"evaluation"},
    {"plots", "structure"},
    {"storage", "matching", "recipes", "pretraining", "fitted_priors", "portable"},
    {"sklearn", "experiment"},
    {"cli"},
]
MODELLING, INFERENCE = {"model"}, {"programs", "objectives", "training", "evaluation"}
UPWARD = {("objectives/weight_priors.py", "training")}  # asks how training checks data


def imports(path: Path) -> set[str]:
    """The modules and folders directly in pyroae that a file imports from."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            below = package[: len(package) - node.level + 1]
            names = node.module.split(".") if node.module else [None]
            found |= {alias.name for alias in node.names} if not below and not node.module else {[*below, *names][0]}
    return found


FILES = {str(path.relative_to(ROOT)): imports(path) for path in sorted(ROOT.rglob("*.py")) if path.name != "conftest.py"}
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def home(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def test_every_module_has_its_place():
    assert {home(file) for file in FILES} - {"__init__", "__main__"} == RANK.keys()


@pytest.mark.parametrize("name", sorted(RANK))
def test_imports_point_one_way(name):
    upward = {(file, each) for file, found in FILES.items() if home(file) == name for each in found if RANK[each] > RANK[name]}
    assert upward <= UPWARD


def test_modelling_and_inference_meet_in_pyro_alone():
    crossing = {file: found & (INFERENCE if home(file) in MODELLING else MODELLING) for file, found in FILES.items()}
    assert {file for file in FILES if home(file) in MODELLING | INFERENCE and crossing[file]} == set()
