"""Every public name is documented, with an example that the doctests run."""

import inspect

import pytest

import pyroae as pa


def public():
    """Every public class and function, by the name that a person types."""
    found = {}
    for name in pa.__all__:
        value = getattr(pa, name)
        if not inspect.ismodule(value):
            found[f"pa.{name}"] = value
            continue
        for inner in getattr(value, "__all__", [inner for inner in vars(value) if not inner.startswith("_")]):
            each = getattr(value, inner)
            if (inspect.isclass(each) or inspect.isfunction(each)) and each.__module__.startswith("pyroae"):
                found[f"pa.{name}.{inner}"] = each
    return found


@pytest.mark.parametrize("name", public())
def test_it_says_what_it_is_and_shows_it(name):
    said = inspect.getdoc(public()[name]) or ""
    assert len(said.split()) >= 3 and ">>>" in said
