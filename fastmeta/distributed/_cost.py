"""Cost model by which ranks choose how to exchange task gradients.

All ranks know the sizes that costs depend on, so they make the same choice. Collectives are
modelled as rings, all-to-all as one message to each other rank, and a broadcast as a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Plan = Literal["sums", "columns", "rows"]
Plans = dict[Plan, "Cost"]

# Approximate values for gloo on one machine (docs/results/scaling.md). With other values, another
# of several plans with similar costs may be the best one.
MESSAGE = 2.0**15  # time of a message, in units of sending a number
PRODUCT = 2.0**-7  # time of a multiply-add, in the same units


@dataclass(frozen=True)
class Cost:
    """The sequential work of one rank.

    Attributes:
        messages: number of messages that it waits for.
        numbers: number of numbers that it sends.
        products: number of multiply-adds.
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
        """`alpha messages + beta numbers + gamma products`."""
        return self.messages * message + self.numbers * number + self.products * product


def all_reduce(numbers: float, ranks: int) -> Cost:
    """Sum of `numbers` numbers over ranks."""
    return Cost(2 * (ranks - 1), 2 * numbers * (ranks - 1) / ranks)


def all_gather(own: float, ranks: int) -> Cost:
    """Each rank's `own` numbers to all ranks."""
    return Cost(ranks - 1, own * (ranks - 1))


def all_to_all(own: float, ranks: int) -> Cost:
    """An equal part of each rank's `own` numbers to each rank."""
    return Cost(ranks - 1, own * (ranks - 1) / ranks)


def broadcast(numbers: float, ranks: int) -> Cost:
    """One rank's numbers to all ranks."""
    depth = math.ceil(math.log2(ranks))
    return Cost(depth, depth * numbers)


def mean(tasks: int, params: int, ranks: int) -> Plans:
    """Plans for weights that do not depend on the gradients."""
    return {"sums": _combined_sums(tasks, params, ranks)}


def similarity(tasks: int, params: int, ranks: int, support: bool) -> Plans:
    """Plans for weights from the similarity to the mean: Gradient Agreement, GSL.

    Args:
        tasks: of all ranks.
        params: size of a gradient.
        ranks: number of ranks.
        support: whether support gradients are compared, rather than the combined gradients.
    """
    own = _tasks_per_rank(tasks, ranks)
    exchanged = _exchanged(tasks, params, ranks, 2 * tasks, 2 * tasks * params)
    if support:
        combined = _combined_sums(tasks, params, ranks)
        other: Plans = {plan: cost + combined for plan, cost in exchanged.items()}
    else:
        other = _combined_exchanged(tasks, params, ranks, exchanged)
    sums = (
        all_reduce(params, ranks)
        + all_gather(2 * own, ranks)
        + Cost(products=3 * own * params)
        + _combined_sums(tasks, params, ranks)
    )
    return {"sums": sums, **other}


def gram(tasks: int, params: int, ranks: int) -> Plans:
    """Plans for weights from the Gram matrix."""
    exchanged = _exchanged(tasks, params, ranks, tasks**2, tasks * (tasks + 1) / 2 * params)
    return _combined_exchanged(tasks, params, ranks, exchanged)


def cheapest(plans: Plans) -> Plan:
    """The plan of minimum time with `MESSAGE` and `PRODUCT`."""
    return min(plans, key=lambda plan: plans[plan].time(MESSAGE, 1.0, PRODUCT))


def _tasks_per_rank(tasks: int, ranks: int) -> int:
    return -(-tasks // ranks)


def _exchanged(tasks: int, params: int, ranks: int, computed: float, products: float) -> Plans:
    """Exchange of all gradients, by columns or whole, and `computed` numbers from them."""
    own = _tasks_per_rank(tasks, ranks) * params
    columns = all_to_all(own, ranks) + all_reduce(computed, ranks)
    return {
        "columns": columns + Cost(products=products / ranks),
        "rows": all_gather(own, ranks) + Cost(products=products),
    }


def _combined_sums(tasks: int, params: int, ranks: int) -> Cost:
    """The weighted sum of all gradients, by an all-reduce."""
    return all_reduce(params, ranks) + Cost(products=_tasks_per_rank(tasks, ranks) * params)


def _combined_exchanged(tasks: int, params: int, ranks: int, exchanged: Plans) -> Plans:
    """The weighted sum of gradients that were exchanged."""
    weights, products = broadcast(tasks, ranks), tasks * params
    columns = weights + all_gather(-(-params // ranks), ranks) + Cost(products=products / ranks)
    return {
        "columns": exchanged["columns"] + columns,
        "rows": exchanged["rows"] + weights + Cost(products=products),
    }
