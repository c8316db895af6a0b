"""Prints the table of all datasets in docs/results/accuracy.md, from the CSVs of the tables.

python -m benchmarks.studies.summary
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies.cells import Results
from benchmarks.studies.page import Score, score_of
from benchmarks.studies.plan import Cell, config_of, read_plan

FOLDER = Path("benchmarks/tables")
TABLES = {
    "omniglot-5w1s": "Omniglot, 5-way 1-shot",
    "omniglot-5w5s": "5-way 5-shot",
    "omniglot-20w1s": "20-way 1-shot",
    "omniglot-20w5s": "20-way 5-shot",
    "mnist-5w1s": "modified MNIST, 5-way 1-shot",
    "mini-imagenet-5w1s": "mini-ImageNet subset, 5-way 1-shot",
    "mini-imagenet-5w5s": "5-way 5-shot",
    "clinc150-5w1s": "CLINC150 intents, 5-way 1-shot",
    "cora-2w1s": "Cora nodes, 2-way 1-shot",
    "citeseer-2w1s": "CiteSeer nodes, 2-way 1-shot",
    "sine": "sine, mean squared error",
}
METHODS = ("maml", "fomaml", "gsl", "mixed-order", "anil", "cml")
HEAD = ("tasks", "meta-steps x tasks", "MAML", "FOMAML", "GSL", "mixed order", "ANIL", "CML")


def main() -> None:
    print(_line(HEAD), _line(["---"] * len(HEAD)), sep="\n")
    for name, title in TABLES.items():
        table = read_plan(FOLDER / f"{name}.toml", {"data_root": "."})
        finished = Results(FOLDER / f"{name}.csv", list(table.rows)).read()
        config = config_of(Cell(table.rows["maml"], 0), Path())
        budget = f"{config.steps:,} x {config.meta_batch}"
        scores = [_show(score_of(method, finished)) for method in METHODS]
        print(_line([f"[{title}](../../benchmarks/tables/{name}.md)", budget, *scores]))


def _show(score: Score | None) -> str:
    if score is None:
        return ""
    factor, digits = (100, 1) if score.metric == "accuracy" else (1, 3)
    seeds = "" if score.seeds == 3 else f" ({score.seeds} seed{'s' * (score.seeds > 1)})"
    return f"{factor * score.mean:.{digits}f} ± {factor * score.ci95:.{digits}f}{seeds}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
