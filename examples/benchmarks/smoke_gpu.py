"""Everything that can go wrong on a GPU, a row for each check, in a few minutes.

uv run python examples/benchmarks/smoke_gpu.py
uv run python examples/benchmarks/smoke_gpu.py --device cpu --only '["schedules"]'

On a CPU every row says that it was not run on CUDA; most do their check on the CPU. A check that fails,
or takes longer than its limit, says why, and the others go on.
"""

import contextlib
import functools
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator

import smoke_checks as of
import smoke_uses as uses
import torch
from reporting import markdown, surroundings, write
from smoke_checks import NOT_RUN, NotRun, Row

CHECKS: dict[str, tuple[Callable, float]] = {  # and seconds that it may take
    "device and one kernel": (of.a_kernel, 60),
    "parts, traced": (of.every_part, 120),
    "recorded step": (of.recorded, 30),
    "clipped, micro-batches, sync": (of.step_options, 60),
    "no wait for the device": (of.silent, 30),
    "schedules": (of.schedules, 60),
    "Adam, AdamW, SGD": (of.optimizers, 60),
    "state, hook, weight replaced": (of.changes, 60),
    "LowRankNormal, then fit": (of.low_rank, 60),
    "precisions": (of.precisions, 60),
    "TF32 by both interfaces": (of.tf32, 30),
    "cuda:1": (of.another_gpu, 30),
    "CPU to CUDA to CPU": (of.resumed, 60),
    "5,000 particles": (of.many_particles, 60),
    "scores": (uses.scores, 120),
    "methods and evaluations": (uses.methods, 60),
    "plain Pyro programs": (uses.programs, 120),
    "data that do not fit": (of.streamed, 30),
    "torchrun": (of.processes, 120),
    "tests of GPUs": (of.tests, 300),
    **{f"compiled {name}": (functools.partial(of.compiled, **options), 120) for name, options in of.COMPILED.items()},
}


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """``TimeoutError`` after so many seconds."""

    def stop(*_):
        raise TimeoutError(f"over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def checked(name: str, device: torch.device) -> Row:
    """Run one check."""
    check, seconds = CHECKS[name]
    row = Row(name)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with limited(seconds):
                check(device, row)
        except NotRun as error:
            row.ok, row.note = NOT_RUN, str(error)
        except Exception as error:  # whatever it is, the other checks go on
            row.ok, row.note = "no", f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
            traceback.print_exc()
    if device.type == "cuda":
        row.peak = torch.cuda.max_memory_allocated(device) / 1e6
    if device.type != "cuda" and row.ok != NOT_RUN:
        row.ok += f" on the CPU; {NOT_RUN}"
    row.warned = sorted({f"{each.category.__name__}: {each.message}".partition("\n")[0][:120] for each in warned})
    return row


def main(device: str = "auto", only: list[str] = [*CHECKS], out: str = "smoke_gpu"):
    """Run the checks, and write a table.

    Args:
        device: auto, cpu or cuda.
        only: the checks.
        out: the table's path, without suffix.
    """
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    rows = []
    for name in only:
        begin = time.perf_counter()
        rows.append(checked(name, place))
        print(f"{name}: {rows[-1].ok}, {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    number = lambda value, digits: "" if value is None else f"{value:.{digits}f}"
    notes = ["; ".join(filter(None, [row.note, *row.warned])) for row in rows]
    numbers = [[number(row.ms, 2), number(row.captures, 0), number(row.peak, 0)] for row in rows]
    cells = [[row.name, row.ok, *middle, note] for row, middle, note in zip(rows, numbers, notes)]
    table = markdown(["check", "ok", "ms/step", "captures", "peak MB", "note"], cells)
    settings = {"device": str(place)} | surroundings(place)
    write(out, settings, {"rows": [vars(row) for row in rows]}, [table])


if __name__ == "__main__":
    import jsonargparse

    jsonargparse.CLI(main, as_positional=False)
