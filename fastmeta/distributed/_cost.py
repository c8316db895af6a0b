"""What an exchange of task rows costs: the stated model by which ranks choose one.

Every rank knows the sizes that a cost depends on, so that all choose alike. Collectives are counted
as rings, all-to-all as one message to each other rank, and a broadcast as a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Plan = Literal["sums", "columns", "rows"]
Plans = dict[Plan, "Cost"]

# About what gloo measures on one machine (docs/results/scaling.md). Where others hold, a choice
# between plans that cost about the same may be the other one.
MESSAGE = 2.0**15  # a message takes as long as so many numbers
PRODUCT = 2.0**-7  # and a product that is added up as so many


@dataclass(frozen=True)
class Cost:
    """What one rank does, one thing after the other.

    Attributes:
        messages: that it waits for.
        numbers: that it sends.
        products: that it adds up.
    """

    messages: float = 0.0
    numbers: float = 0.0
    products: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.messages + other.messages,
            self.numbers + other.numbers,
            self.products + other.products,
        )

    def time(self, message: float, number: float, product: float) -> float:
        """``alpha messages + beta numbers + gamma products``."""
        return self.messages * message + self.numbers * number + self.products * product


def all_reduce(numbers: float, ranks: int) -> Cost:
    """The sum of ``numbers`` numbers over ranks."""
    return Cost(2 * (ranks - 1), 2 * numbers * (ranks - 1) / ranks)


def all_gather(own: float, ranks: int) -> Cost:
    """Each rank's ``own`` numbers on all ranks."""
    return Cost(ranks - 1, own * (ranks - 1))


def all_to_all(own: float, ranks: int) -> Cost:
    """A share of each rank's ``own`` numbers to each rank."""
    return Cost(ranks - 1, own * (ranks - 1) / ranks)


def broadcast(numbers: float, ranks: int) -> Cost:
    """One rank's numbers on all ranks."""
    depth = math.ceil(math.log2(ranks))
    return Cost(depth, depth * numbers)


def mean(tasks: int, params: int, ranks: int) -> Plans:
    """Of weights that are known beforehand."""
    return {"sums": _combined_sums(tasks, params, ranks)}


def similarity(tasks: int, params: int, ranks: int, inner: bool) -> Plans:
    """Of weights from the similarity to the mean: Gradient Agreement's, GSL's.

    ``inner`` if that is of other rows than those that are combined.
    """
    own = _own(tasks, ranks)
    shared = _shared(tasks, params, ranks, 2 * tasks, 2 * tasks * params)
    if inner:
        again = _combined_sums(tasks, params, ranks)
        other: Plans = {plan: cost + again for plan, cost in shared.items()}
    else:
        other = _combined_shared(tasks, params, ranks, shared)
    sums = (
        all_reduce(params, ranks)
        + all_gather(2 * own, ranks)
        + Cost(products=3 * own * params)
        + _combined_sums(tasks, params, ranks)
    )
    return {"sums": sums, **other}


def gram(tasks: int, params: int, ranks: int) -> Plans:
    """Of weights from the Gram matrix."""
    shared = _shared(tasks, params, ranks, tasks**2, tasks * (tasks + 1) / 2 * params)
    return _combined_shared(tasks, params, ranks, shared)


def cheapest(plans: Plans) -> Plan:
    """The plan that takes least time by ``MESSAGE`` and ``PRODUCT``."""
    return min(plans, key=lambda plan: plans[plan].time(MESSAGE, 1.0, PRODUCT))


def _own(tasks: int, ranks: int) -> int:
    return -(-tasks // ranks)


def _shared(tasks: int, params: int, ranks: int, found: float, products: float) -> Plans:
    """All tasks' rows on a rank, in part or whole, and ``found`` numbers computed from them."""
    rows = _own(tasks, ranks) * params
    columns = all_to_all(rows, ranks) + all_reduce(found, ranks)
    return {
        "columns": columns + Cost(products=products / ranks),
        "rows": all_gather(rows, ranks) + Cost(products=products),
    }


def _combined_sums(tasks: int, params: int, ranks: int) -> Cost:
    return all_reduce(params, ranks) + Cost(products=_own(tasks, ranks) * params)


def _combined_shared(tasks: int, params: int, ranks: int, shared: Plans) -> Plans:
    weights, products = broadcast(tasks, ranks), tasks * params
    columns = weights + all_gather(-(-params // ranks), ranks) + Cost(products=products / ranks)
    return {
        "columns": shared["columns"] + columns,
        "rows": shared["rows"] + weights + Cost(products=products),
    }
