"""Whether ``pa.SVI`` is ``pyro.infer.SVI`` on each of ``pyro_programs``, and how fast it is there.

uv run python examples/pyro_table.py                                                # ten minutes
uv run python examples/pyro_table.py --modes '["eager","auto","traced","compiled"]' # an hour
"""

import json
import resource
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import pyro
import torch
from benchmarks.reporting import markdown, surroundings
from pyro_programs import PROGRAMS, Program
from pyro_programs.comparison import differences, run

import pyroae as pa

LEVELS = "eager", "traced", "compiled"
TOLERANCES = {"eager": 1e-6, "auto": 1e-6, "traced": 1e-6, "compiled": 1e-5}


def main(
    only: str = "",
    steps: int = 20,
    rounds: int = 10,
    modes: list[str] = ["eager", "auto", "traced"],
    longest: float = 0.0,
    out: str = "pyro_programs",
):
    """Write ``out.json`` and ``out.md``.

    Args:
        only: run those programs alone whose name has this text.
        steps: how many are compared, and how many are taken before the clock starts.
        rounds: how many are timed; the median counts.
        modes: values of ``pa.SVI``'s ``compile``.
        longest: seconds of Pyro's run in which "auto" is watched; 0 for none.
        out: names the files; what is in the JSON file is not measured again.
    """
    torch.set_num_threads(1)
    path = Path(f"{out}.json")
    found = json.loads(path.read_text()) if path.exists() else {"surroundings": surroundings(), "programs": {}}
    for name, program in PROGRAMS.items():
        if only not in name:
            continue
        row = found["programs"].setdefault(name, {})
        if "differences" not in row:
            row |= equality(program, modes, steps) | speed(program, modes, steps, rounds)
        if longest and "lag" not in row:
            row["lag"] = round(lag(program, longest), 3)
        path.write_text(json.dumps(found, indent=1))
        print(name, row, flush=True)
    Path(f"{out}.md").write_text(table(found["programs"]) + "\n")


def equality(program: Program, modes: list[str], steps: int) -> dict:
    """The largest relative difference from Pyro's values and parameters in each mode (compiled: of the first value), or the error."""
    theirs, result = run(program, pyro.infer.SVI, steps), {}
    for mode in modes:
        try:
            apart = differences(run(program, partial(pa.SVI, compile=pa.Step(mode, precision="highest")), steps), theirs)
            result[mode] = apart[0] if mode == "compiled" else max(apart)
        except Exception as problem:
            result[mode] = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return {"differences": result}


def speed(program: Program, modes: list[str], steps: int, rounds: int) -> dict:
    """Median milliseconds of a value in ``rounds`` after the first ``steps``, of Pyro and of each mode; and the mode reached."""
    times, reached = {}, {}
    for name in ("pyro", *modes):
        made: list = []
        SVI = pyro.infer.SVI if name == "pyro" else partial(pa.SVI, compile=name)
        values = program(lambda *args, SVI=SVI, made=made, **kwargs: made.append(SVI(*args, **kwargs)) or made[-1], steps + rounds)
        try:
            times[name] = round(median(_seconds(values, steps + rounds)[steps:]) * 1e3, 2)
        except Exception:
            continue  # the comparison of losses says why
        if name != "pyro":
            reached[name] = LEVELS[max((level for _, level, _ in made[0].levels()["step"] or []), default=0)]
    return {"reached": reached, "ms": times}


def lag(program: Program, longest: float) -> float:
    """By how much "auto" is behind Pyro at the step where it is furthest behind, as a share of Pyro's time, or of 2 s until then.

    A run of Pyro of ``longest`` seconds, and one of "auto"; 20 values of one alternate with 20 of the other.
    """
    theirs, ours = (_Run(program(SVI, 10**6)) for SVI in (pyro.infer.SVI, partial(pa.SVI, compile="auto")))
    furthest, order = 0.0, [theirs, ours]
    try:
        while theirs.spent < longest:
            for run in order:
                run.go_on()
            furthest = max(furthest, (ours.spent - theirs.spent) / max(2.0, theirs.spent))
            order.reverse()  # what comes second finds other things in the caches
    except (StopIteration, ValueError):  # after thousands of steps some programs are no longer finite
        pass
    return furthest


class _Run:
    """A program's values, beside those of others: it has a parameter store and random numbers of its own."""

    def __init__(self, values: Iterator):
        self.values, self.random, self.spent = values, None, 0.0
        self.store: dict = {}

    def go_on(self):
        """Take the next values, and count their time."""
        store = vars(pyro.get_param_store())
        pyro.clear_param_store()
        if self.random is None:
            pyro.set_rng_seed(0)
        else:
            store.update(self.store)
            pyro.util.set_rng_state(self.random)
        try:
            start = _clock()
            for _ in range(20):
                next(self.values)
            self.spent += _clock() - start
        finally:
            self.store, self.random = dict(store), pyro.util.get_rng_state()
            pyro.clear_param_store()


def _seconds(values: Iterator, until: int | float) -> list[float]:
    """The time that each of so many values takes, or each value of so many seconds; the parameter store is empty afterwards."""
    pyro.set_rng_seed(0)
    spent: list[float] = []
    try:
        while (len(spent) if isinstance(until, int) else sum(spent)) < until:
            start = _clock()
            next(values)
            spent.append(_clock() - start)
    except StopIteration:
        pass
    finally:
        values.close()
        pyro.clear_param_store()
    return spent


def _clock() -> float:
    """Seconds of the processor, those of C++ compilers included: they do not depend on what else the machine does."""
    compilers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + compilers.ru_utime + compilers.ru_stime


def table(programs: dict) -> str:
    """Each program's verdicts, the mode that it reaches when asked for the highest, and, where measured, the time of its steps."""
    modes = list(next(iter(programs.values()))["differences"])
    rows = []
    measured = any("ms" in row for row in programs.values())
    times = ["Pyro, ms a step", *(f"{mode} / Pyro" for mode in modes)] if measured else []
    for name, row in programs.items():
        cells = [_verdict(row["differences"][mode], TOLERANCES[mode]) for mode in modes]
        ms = row["ms"] if row.get("ms", {}).get("pyro") else {}  # 0 where a program gives many values at once
        ratios = [f"{ms[mode] / ms['pyro']:.2f}" if mode in ms else "" for mode in modes]
        behind = [f"{row['lag']:+.0%}"] if "lag" in row else []
        speeds = [f"{ms['pyro']:.1f}", *ratios] if ms else [""] * len(times)
        rows.append([name, *cells, row["reached"].get(modes[-1], ""), *speeds, *behind])
    watched = ["auto behind by, at most"] if any("lag" in row for row in programs.values()) else []
    return markdown(["program", *(f"equal, {mode}" for mode in modes), "reached", *times, *watched], rows)


def _verdict(difference: float | str, tolerance: float) -> str:
    if isinstance(difference, str):
        return difference.replace("|", "/")
    return "yes" if difference < tolerance else f"{difference:.0e} apart"


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
