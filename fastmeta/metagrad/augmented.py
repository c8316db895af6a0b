"""Meta-gradients of pruned copies of the network as augmentation (MGAug)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_choice, check_in_range, check_integer
from fastmeta._options import forwards_options, named
from fastmeta.adaptation import Adaptation
from fastmeta.functional import Buffers
from fastmeta.gradients.sums import added
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.metagrad.wrapper import Wrapper, inner_by_name

Masks = Literal["catfish", "prune", "none"]
_MOST = 0.999  # of the entries a copy keeps at most, as in the authors' code


class Augmented(Wrapper):
    """Another meta-gradient plus those of pruned copies of the network (MGAug).

    Wang et al., "Improving Generalization in Meta-Learning via Meta-Gradient Augmentation"
    (arXiv 2306.08460), with the details of the authors' code: of each task, the sum

    `m = G(theta) + sum_u M_u * G_u(M_u * theta)`,

    where `G` is the other meta-gradient and `G_u` that of a copy which adapts and is evaluated with
    some weights set to 0 by the mask `M_u`; such weights get nothing from their copy. With Adam,
    whose steps do not depend on the scale of the gradient, the sum is as good as the mean.

    Each kernel of a convolution is masked by the scores `|theta * G(theta)|` of its entries; all
    else is used as it is. A copy keeps a share of the entries: the first copy `keep`, the others
    shares drawn from `U(keep, 1)`, and none more than 0.999. **Ours**: the score uses the
    meta-gradient of the task itself, so that tasks do not depend on their order; in the authors'
    code it is the sum over the tasks of the meta-batch so far. And in a network without
    convolutions, all weight matrices are masked.

    Losses, outputs and buffers are those of the network itself. If
    [`combine`][fastmeta.metagrad.MetaGradient.combine] of the other meta-gradient computes
    something, as corrections by GSL do, it uses the sums. A task takes `1 + copies` times as long:
    compare with as many times the meta-steps. Runs in the loop engine.

    Args:
        inner: the other meta-gradient.
        copies: number of copies; 0: the other meta-gradient alone.
        keep: smallest share of the entries of a kernel that a copy keeps; 0.98 in the authors' runs
            of MAML and FOMAML.
        masks: `"catfish"` drops the entries of largest score, as in all runs of the authors:
            `int((1 - keep) n) - 1` of `n`, those above the last of the first `int((1 - keep) n)`.
            `"prune"` keeps the `int(keep n)` entries of largest score. `"none"` masks nothing.
        sizes: heights and widths of images; each copy sees support and query images resized
            (bilinear) to one of them, drawn at random. A last linear layer uses the first columns
            of its weight if there are fewer features. Empty: images are not resized. The authors
            use 84, 64 and 48 for images of 84.
        seed: of shares and sizes, which are functions of seed, meta-step and task.

    Raises:
        ValueError: if an argument is out of range; or later, if images to resize are not images, or
            the network cannot take other sizes.
    """

    def __init__(
        self,
        inner: MetaGradient,
        copies: int = 3,
        keep: float = 0.98,
        masks: Masks = "catfish",
        sizes: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(inner)
        check_integer("copies", copies, 0)
        check_in_range("keep", keep, 0, 1, closed=True)
        check_choice("masks", masks, get_args(Masks))
        for size in sizes:
            check_integer("each of sizes", size, 1)
        check_integer("seed", seed, 0)
        self.copies = copies
        self.keep = keep
        self.masks: Masks = masks
        self.sizes = tuple(sizes)
        self.seed = seed

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        before = _clone(losses.buffers)
        found = self.inner.task(losses, params, adaptation, context)
        if not self.copies:
            return found
        after = dict(losses.buffers)
        outer, support = list(found.outer), found.support
        scores = self._scores(params, found.outer)
        for keep, size in self._draws(context):
            masks = [None if s is None else self._mask(s, keep) for s in scores]
            copy = losses if size is None else _resized(losses, size)
            losses.buffers.update(_clone(before))
            other = self.inner.task(copy.wrapped(_masked(masks)), params, adaptation, context)
            # Weight decay of the adaptation may move what the copy does not have.
            outer = added(outer, _apply(masks, other.outer))
            support = None if support is None else added(support, other.support or ())
        losses.buffers.update(after)
        return replace(found, outer=outer, support=support)

    def _draws(self, context: StepContext) -> list[tuple[float, int | None]]:
        """Share of kept entries and size of the images of each copy."""
        rng = random.Random(f"{self.seed} {int(context.step)} {int(context.task)}")
        more = (rng.uniform(self.keep, 1) for _ in range(self.copies - 1))
        shares = sorted((min(share, _MOST) for share in (self.keep, *more)), reverse=True)
        return [(share, rng.choice(self.sizes) if self.sizes else None) for share in shares]

    def _scores(
        self, params: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The score of each entry of the parameters that are masked."""
        if self.masks == "none":
            return [None] * len(params)
        kernels = any(p.dim() > 2 for p in params)
        pairs = zip(params, grads, strict=False)  # learned rates follow the parameters
        return [
            (p.detach() * g).abs() if g is not None and p.dim() > (2 if kernels else 1) else None
            for p, g in pairs
        ]

    def _mask(self, score: Tensor, keep: float) -> Tensor:
        """1 where an entry is kept, else 0."""
        share = 1 - keep if self.masks == "catfish" else keep
        count = int(share * score.numel())
        if count == 0:
            return torch.ones_like(score)
        last = score.flatten().topk(count).values[-1]
        kept = score <= last if self.masks == "catfish" else score >= last
        return kept.to(score)


def _masked(masks: Sequence[Tensor | None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Evaluations with masked parameters; the chain rule masks their gradients."""

    def wrap(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *others: evaluate(_apply(masks, params), *others)

    return wrap


def _apply(masks: Sequence[Tensor | None], tensors: Sequence[Any]) -> list[Any]:
    """Each tensor times its mask, if it has one; those without a place in `masks` follow."""
    pairs = zip(masks, tensors, strict=False)
    found = [t if m is None or t is None else t * m for m, t in pairs]
    return [*found, *tensors[len(found) :]]


def _resized(losses: TaskLosses, size: int) -> TaskLosses:
    if losses.resized is None:
        raise ValueError("the engine cannot resize images. Use engine='loop', or no sizes.")
    return losses.resized(size)


def _clone(buffers: Buffers) -> Buffers:
    return {name: buffer.clone() for name, buffer in buffers.items()}


def augmented_by_name(
    others: Mapping[str, Callable[..., MetaGradient]],
) -> Callable[..., Augmented]:
    """Makes the augmented form of a meta-gradient that is given by its name.

    Args:
        others: the meta-gradients, by name.
    """

    @forwards_options(named(others, "of", "exact"))
    def augmented(
        of: str = "exact",
        copies: int = 3,
        keep: float = 0.98,
        masks: Masks = "catfish",
        sizes: Sequence[int] = (),
        mask_seed: int = 0,
        **options: Any,
    ) -> Augmented:
        """Another meta-gradient plus those of pruned copies of the network (MGAug).

        Args:
            of: name of the meta-gradient, whose options are accepted, too.
            copies: number of copies; 0: the other meta-gradient alone.
            keep: smallest share of the entries of a convolution's kernel that a copy keeps.
            masks: catfish drops the entries of largest score, prune those of smallest score, none
                drops nothing.
            sizes: heights and widths; each copy sees images resized to one of them.
            mask_seed: of shares and sizes.
            **options: of this meta-gradient.
        """
        inner = inner_by_name(of, others, options)
        return Augmented(inner, copies, keep, masks, sizes, mask_seed)

    return augmented
