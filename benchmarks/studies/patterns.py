"""Adaptation time of all 31 layer patterns of Conv4, measured and predicted by the cost model.

Adaptation to a 5-way 1-shot task at test time, random images, one thread, medians of interleaved
rounds. The model is fitted to 14 measurements, none of them among those of the 31 patterns. Prints
tables:

    python -m benchmarks.studies.patterns > benchmarks/results/patterns-cpu.txt
"""

from __future__ import annotations

import argparse
import statistics
from functools import cache, partial
from itertools import product

import torch
import torch.nn.functional as F

import fastmeta
from benchmarks._common.batches import image_batch
from fastmeta import FOMAML, TaskBatch
from fastmeta.models import Conv4
from fastmeta.tuning import measure_cost, with_pattern
from fastmeta.tuning.timing import medians

CPU = torch.device("cpu")
PATTERNS = ["".join(bits) for bits in product("01", repeat=5)][1:]

CASES: dict[str, tuple[Conv4, TaskBatch]] = {
    "Omniglot, strided, 64 filters": (Conv4(1, 28, 5, 64, "stride"), image_batch(1, 1)),
    "Omniglot, pooled, 64 filters": (Conv4(1, 28, 5, 64, "pool"), image_batch(1, 1)),
    "mini-ImageNet, pooled, 32 filters": (Conv4(3, 84, 5, 32, "pool"), image_batch(1, 1, 3, 84)),
}


def compare(name: str, module: Conv4, batch: TaskBatch, steps: int) -> None:
    learner = FOMAML(module, F.cross_entropy, inner_lr=0.01)
    patterned = cache(partial(with_pattern, learner))

    def adapt(pattern: str, count: int) -> None:
        patterned(pattern).adapt(batch.support_x[0], batch.support_y[0], count)

    model = measure_cost(adapt, 5, steps, CPU)
    measured = medians({p: partial(adapt, p, steps) for p in PATTERNS}, CPU)
    predicted = {p: model.predict(p, steps) for p in PATTERNS}
    plain = medians({"": partial(learner.adapt, *batch[0][:2], steps)}, CPU)[""]

    print(f"\n{name}, {steps} inner steps")
    print(f"{'layer':<10}{'prefix, once':>15}{'step':>13}{'weights':>10}   ms")
    for k, parts in enumerate(zip(model.once, model.step, model.more, strict=True)):
        once, step, more = (1e3 * part for part in parts)
        print(f"{k:<10}{once:>15.2f}{step:>13.2f}{more:>10.2f}")
    print(f"{'pattern':<10}{'measured, ms':>15}{'predicted':>13}{'ratio':>10}{'speed':>9}")
    for p in sorted(PATTERNS, key=measured.__getitem__):
        times = f"{1e3 * measured[p]:>15.2f}{1e3 * predicted[p]:>13.2f}"
        print(f"{p:<10}{times}{predicted[p] / measured[p]:>10.2f}{plain / measured[p]:>8.2f}x")
    pairs = [(measured[p], predicted[p]) for p in PATTERNS]
    correlation = statistics.correlation(*zip(*pairs, strict=True))
    errors = [abs(b / a - 1) for a, b in pairs]
    print(
        f"plain SGD {1e3 * plain:.2f} ms; correlation {correlation:.4f}, "
        f"median error {100 * statistics.median(errors):.1f} %, maximum {100 * max(errors):.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="inner steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fastmeta.keep_freed_memory()
    print(f"# torch {torch.__version__}, fastmeta {fastmeta.build_info().version}, 1 thread")
    for name, (module, batch) in CASES.items():
        compare(name, module, batch, args.steps)


if __name__ == "__main__":
    main()
