#!/usr/bin/env python3
"""Compares the registers and spills of the CUDA kernels in a build log with .ci/registers.md.

FASTMETA_CUDA=on NVCC_APPEND_FLAGS=-Xptxas=-v pip install -v -e . 2>&1 | tee build.log
python .ci/registers.py build.log            # fails if a kernel needs more
python .ci/registers.py build.log --write    # rewrites the table
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).resolve().parent / "registers.md"
MARGIN = 8  # tolerated additional registers: GPUs allocate them in units of eight

HEADING = """# Registers and spills of the CUDA kernels

Written by `.ci/registers.py` from the report of ptxas (CUDA {release}); CI compares builds with
this table. For each GPU architecture: the registers per thread and, if there are spills, the bytes
(stored + loaded). `shared` is the static shared memory per block, in bytes.

"""


class Usage(NamedTuple):
    """The resources of one kernel on one architecture."""

    registers: int
    stored: int
    loaded: int
    shared: int

    def __str__(self) -> str:
        spill = f" ({self.stored} + {self.loaded})" if self.stored or self.loaded else ""
        return f"{self.registers}{spill}"


Table = dict[str, dict[int, Usage]]  # by kernel and architecture

ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for 'sm_(?P<architecture>\d+)'"
    r".*?(?P<stored>\d+) bytes spill stores, (?P<loaded>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
CELL = re.compile(r"(\d+)(?: \((\d+) \+ (\d+)\))?")


def own_names(symbols: list[str]) -> list[str]:
    """Demangled names, as in the emulation: ``combine_kernel<float, 2>``."""
    run = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    heads = (line.split("(")[0] for line in run.stdout.splitlines())
    return [re.sub(r"^void |\w+::", "", head) for head in heads]


def read_log(text: str) -> Table:
    """The reports of ptxas in a build log."""
    found = list(ENTRY.finditer(text))
    table: Table = {}
    for name, m in zip(own_names([m["symbol"] for m in found]), found, strict=True):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        numbers = (int(m[k]) for k in ("registers", "stored", "loaded"))
        usage = Usage(*numbers, int(shared[1]) if shared else 0)
        table.setdefault(name, {})[int(m["architecture"])] = usage
    return table


def read_table(text: str) -> Table:
    """Parses a table that ``written`` formatted."""
    head, _, *lines = [line.strip("|").split("|") for line in text.splitlines() if line[:1] == "|"]
    table: Table = {}
    for name, shared, *cells in lines:
        table[name.strip(" `")] = {
            int(architecture): Usage(*(int(n or 0) for n in m.groups()), int(shared))
            for architecture, cell in zip(head[2:], cells, strict=True)
            if (m := CELL.search(cell))
        }
    return table


def written(table: Table, release: str) -> str:
    """The table as Markdown."""
    architectures = sorted({a for usages in table.values() for a in usages})
    lines = [
        ["kernel", "shared", *map(str, architectures)],
        ["---"] + ["--:"] * (len(architectures) + 1),
    ]
    for name in sorted(table):
        usages = table[name]
        shared = max(u.shared for u in usages.values())
        cells = [str(usages.get(a, "")) for a in architectures]
        lines.append([f"`{name}`", str(shared), *cells])
    return HEADING.format(release=release) + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def regressions(new: Table, old: Table) -> list[str]:
    """Kernels that need more than in the table, or are in only one of the build and the table."""
    found = [f"{name}: not in the table" for name in sorted(new.keys() - old.keys())]
    found += [
        f"{name}: in the table, but not in the build" for name in sorted(old.keys() - new.keys())
    ]
    for name in sorted(new.keys() & old.keys()):
        for architecture in sorted(new[name].keys() & old[name].keys()):
            now, then = new[name][architecture], old[name][architecture]
            more = {
                "spills more": now.stored > then.stored or now.loaded > then.loaded,
                f"needs over {MARGIN} more registers": now.registers > then.registers + MARGIN,
                "needs more shared memory": now.shared > then.shared,
            }
            found += [
                f"{name}, sm_{architecture}: {what}: {now}, shared {now.shared}; "
                f"in the table {then}, shared {then.shared}"
                for what, is_so in more.items()
                if is_so
            ]
    return found


def cuda_release() -> str:
    """The CUDA release of the nvcc on PATH."""
    run = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release ([\d.]+)", run.stdout)
    if not release:
        raise SystemExit(f"no release in the output of nvcc --version: {run.stdout}")
    return release[1]


def main() -> None:
    """Compares the build log with the table, or writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "log", type=Path, help="output of a build with NVCC_APPEND_FLAGS=-Xptxas=-v"
    )
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--release", help="CUDA release of the log; default: that of nvcc")
    parser.add_argument("--write", action="store_true", help="rewrite the table")
    args = parser.parse_args()
    new = read_log(args.log.read_text())
    if not new:
        raise SystemExit(
            f"{args.log} contains no reports of ptxas; build with NVCC_APPEND_FLAGS=-Xptxas=-v"
        )
    release = args.release or cuda_release()
    if args.write:
        args.table.write_text(written(new, release))
        return
    text = args.table.read_text()
    if f"CUDA {release})" not in text:
        print(f"registers: the table is not for CUDA {release}; not compared")
        return
    if found := regressions(new, read_table(text)):
        print(*found, sep="\n")
        print(
            f"If this is intended: python .ci/registers.py {args.log} --write",
            file=sys.stderr,
        )
        raise SystemExit(1)
    print(f"registers: {len(new)} kernels need no more than in {args.table.name}")


if __name__ == "__main__":
    main()
