"""Building the graphs of a specialization: traced from the program, or compiled together with the optimizer's step."""

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from . import background, native
from .arguments import Leaves, map_leaves
from .graph import Graph, Outputs
from .reach import Reach
from .rewriting import FILES, rewritten
from .snapshot import python_random
from .updates import Update
from .user_code import drawing_line

if TYPE_CHECKING:
    from .specialization import Specialization


class TracedProgram(NamedTuple):
    """A graph of a program, and how to call it."""

    graph: Graph
    inputs: list[int]  # indices of its inputs among the reachable tensors, the arguments and the numbers
    held: list[tuple[int, int]]  # arguments that are reachable tensors: the index of each among both
    effects: list[int]  # indices of reachable tensors that the program replaces; their new values are the last outputs
    info: Any  # of the program's ``Outputs``


def trace(spec: "Specialization", leaves: Leaves, args: tuple, kwargs: dict) -> TracedProgram:
    """Trace the program's tensor operations.

    Raises:
        ValueError: the program has effects that a graph cannot repeat.
    """
    owner, reach, tensors, numbers = spec.owner, spec.reach, spec.reach.tensors(), spec.number_tensors(leaves)
    candidates = [detach_provenance(tensor) for tensor in (*tensors, *leaves.tensors, *numbers)]
    first: dict[int, int] = {}
    for i, tensor in enumerate(candidates):
        first.setdefault(id(tensor), i)
    inputs = list(first.values())
    held = [(i, k) for i, tensor in enumerate(candidates[len(tensors) :][: len(leaves.tensors)]) if (k := first[id(tensor)]) < len(tensors)]
    reachable = iter(numbers[: len(reach.number_paths)])
    replacements = dict(zip([path for path in spec.arguments if path in spec.dynamic], numbers[len(reach.number_paths) :]))
    if replacements:
        paths = iter(spec.arguments)
        args, kwargs = map_leaves((args, kwargs), lambda t: t, lambda value: replacements.get(next(paths), value))
    slots = list(zip(*reach.number_slots, reach.numbers()))
    names, random = dict(owner.param_names), python_random()
    info, effects = None, []

    def function() -> list:
        nonlocal info
        for holder, key, _ in slots:
            holder[key] = next(reachable)
        try:
            with owner.observe():
                outputs = owner.function(*args, **kwargs)
        finally:
            for holder, key, value in slots:
                holder[key] = value
        info = outputs.info
        replaced = _replaced_tensors(reach, tensors)
        effects.extend(replaced)
        return [*outputs, *replaced.values()]

    graph = Graph(function, [candidates[i] for i in inputs])
    if owner.param_names != names:
        raise ValueError("a parameter was made in a later call")
    if python_random() != random:
        line = drawing_line(lambda: owner.function(*args, **kwargs))
        raise ValueError(f"{line}: it draws from Python's or NumPy's random numbers")
    return TracedProgram(graph, inputs, held, effects, info)


def _replaced_tensors(reach: Reach, before: list[Tensor]) -> dict[int, Tensor]:
    """Tensors of user objects that the program has replaced, by index; ``ValueError`` for other changes."""
    own = [path for path in reach.changed() if path in reach.own] + reach.resized()
    if own:
        raise ValueError(f"the program changes {own[0].lstrip('#0123456789.')!r} as it runs")
    pairs = enumerate(zip(before, reach.tensors()))
    changed = [(i, new) for i, (old, new) in pairs if new is not old and reach.tensor_paths[i] in reach.own]
    return {i: detach_provenance(new).detach() for i, new in changed}


def compile_graph(spec: "Specialization", leaves: Leaves, update: Update | None) -> Callable[[list[Tensor]], list]:
    """Native code of the specialization's graph: kept code, or compiled now.

    If ``update`` is given, the optimizer's step is in it, and it returns no gradients.
    """
    graph, constants = spec.graph, spec.graph.constants
    inputs, key = _inputs_and_key(spec, leaves, update)
    run = native.load(key)
    if run is None:
        whole = _whole(spec, inputs, update)
        more = whole.constants if update else []
        constants = [*constants, *more]
        inputs = [*inputs, *more]
        run = native.compiled(rewritten(whole.module, inputs), inputs, None if more else key)
    native.note_seen(spec.owner.described(spec.structure, spec.info))

    def run_all(inputs: list[Tensor]) -> list:
        with torch.no_grad():
            results = run([*inputs, *constants])
            return results if update else graph.with_none(results)

    return run_all


def is_compiled(spec: "Specialization", leaves: Leaves, update: Update | None) -> bool:
    """Whether native code for ``compile_graph`` is kept already."""
    return native.is_kept(_inputs_and_key(spec, leaves, update)[1])


def start_compiling(spec: "Specialization", leaves: Leaves, update: Update | None) -> subprocess.Popen | None:
    """A process that makes the native code for ``compile_graph``; ``None`` if it must be made here."""
    inputs, key = _inputs_and_key(spec, leaves, update)
    if key is None or not background.has_spare_core():
        return None
    whole = _whole(spec, inputs, update)
    if update and whole.constants:
        return None
    return background.start(rewritten(whole.module, inputs), inputs, key)


def _whole(spec: "Specialization", inputs: list[Tensor], update: Update | None) -> Graph:
    """The specialization's graph, with the optimizer's step if ``update`` is given."""
    return Graph(lambda: _with_step(spec, inputs[: len(spec.input_indices)], update), inputs) if update else spec.graph


def _inputs_and_key(spec: "Specialization", leaves: Leaves, update: Update | None) -> tuple[list[Tensor], str | None]:
    """Inputs of the graph to compile, its constants last, and the key of its native code."""
    graph, inputs = spec.graph, spec.inputs(leaves)
    step = ""
    if update:
        step = f"{update.signature(spec.info, inputs)} {graph.checked} {len(spec.effects)} {graph.is_none}"
        inputs = [*inputs, *update.tensors()]
    inputs = [*inputs, *graph.constants]
    return inputs, native.key_of(graph.module, inputs, native.sources(*FILES, "updates"), step)


def _with_step(spec: "Specialization", inputs: list[Tensor], update: Update) -> list:
    """The specialization's graph and the optimizer's step as tensor operations; the results without the gradients."""
    results, checked = spec.graph(inputs), spec.graph.checked
    end = len(results) - len(spec.effects) - checked
    update.traced_step(Outputs(results[:end], spec.info), results[-1] if checked else None)
    return [*results[: spec.info.losses], *results[end:]]
