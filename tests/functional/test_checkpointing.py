"""Learners with activation checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta import FOMAML, MetaLearner
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.functional import Checkpoint, twice_differentiable
from fastmeta.metagrad import Exact, FirstOrder, Implicit, MetaGradient, Recursion
from tests.functional.checkpointing_cases import FIRST_ORDER, MODULES, Residual, images
from tests.helpers.problems import WAYS, Tied, loss, tasks

# torch.nn.utils.spectral_norm has no forward derivative.
SMOOTH = MODULES | {"residual": lambda: Residual(spectral=False)}
EXACT = {"exact": Exact(), "forward": Recursion("forward"), "mixed": Exact("body")}


def attributes(module: nn.Module) -> list[tuple[str, ...]]:
    return [tuple(vars(m)) for m in module.modules()]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_checkpointing_changes_nothing(method: str, name: str, fuse: bool) -> None:
    """Gradients, outputs and buffers are equal, including dropout masks."""
    module, batch = MODULES[name]().double(), tasks()
    results = []
    for checkpoint in (False, True):
        own = copy.deepcopy(module)
        before = attributes(own)
        torch.manual_seed(1)
        learner = FIRST_ORDER[method](
            own, loss, inner_lr=0.1, inner_steps=3, fuse=fuse, checkpoint=checkpoint
        )
        gradient, result = learner.meta_gradient(batch)
        results.append([gradient, result.query_output, learner.predict(batch), *own.buffers()])
        results[-1].append(torch.rand(1))  # the state of the generator
        assert attributes(own) == before
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_checkpointing_with_learned_rates() -> None:
    module, batch = images(), tasks(dtype=torch.float32)
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        learner = MetaLearner(
            copy.deepcopy(module),
            loss,
            adaptation=MetaSGD(0.1, 2),
            metagrad=FirstOrder(),
            aggregation=Mean(),
            checkpoint=checkpoint,
        )
        found.append(learner.meta_gradient(batch)[0])
    torch.testing.assert_close(*found)


class Watch(TorchDispatchMode):
    """Records every tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                ref = StorageWeakRef(tensor.untyped_storage())
                self.storages[ref.cdata] = (ref, tensor.untyped_storage().nbytes())
        return out

    def alive(self) -> int:
        """Bytes of the recorded tensors that are still alive."""
        return sum(size for ref, size in self.storages.values() if not ref.expired())


@pytest.mark.parametrize("name", ["images", "residual", "transformer"])
def test_checkpointing_stores_fewer_activations(name: str) -> None:
    """Compares the memory between the forward and the backward pass."""
    module, task, kept = MODULES[name](), tasks(1, torch.float32)[0], []
    for checkpoint in (False, True):
        model = FOMAML(module, loss, inner_lr=0.1, checkpoint=checkpoint)._built.model
        buffers = model.clone_buffers()
        with Watch() as watch:
            graph = model.evaluate(loss, model.params, buffers, task.query_x, task.query_y)
        assert graph[0].requires_grad
        kept.append(watch.alive())
    assert kept[1] < 0.6 * kept[0]


def test_each_submodule_runs_twice() -> None:
    runs, module = [], images().double()
    module[0].register_forward_hook(lambda *_: runs.append(0))
    FOMAML(module, loss, inner_lr=0.1, inner_steps=1, checkpoint=True).step(tasks(1))
    assert len(runs) == 4  # support and query


def exact_learner(
    module: nn.Module, metagrad: MetaGradient, checkpoint: Checkpoint, steps: int = 1
) -> MetaLearner:
    return MetaLearner(
        module,
        loss,
        adaptation=SGD(0.1, steps, momentum=0.5),
        metagrad=metagrad,
        aggregation=Mean(),
        checkpoint=checkpoint,
    )


@pytest.mark.parametrize("checkpoint", [True, "second-order"])
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("metagrad", EXACT.values(), ids=EXACT)
def test_checkpointing_of_second_derivatives_changes_nothing(
    metagrad: MetaGradient, name: str, checkpoint: Checkpoint
) -> None:
    module, batch = SMOOTH[name]().double(), tasks()
    results = []
    for option in (False, checkpoint):
        own = copy.deepcopy(module)
        before = attributes(own)
        torch.manual_seed(1)
        learner = exact_learner(own, metagrad, option, steps=3)
        gradient, result = learner.meta_gradient(batch)
        results.append([gradient, result.query_output, *own.buffers(), torch.rand(1)])
        assert attributes(own) == before
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["images", "residual", "transformer"])
def test_checkpointing_stores_fewer_activations_and_tangents(name: str) -> None:
    """Compares the memory between the forward and the backward pass, in forward mode."""
    module, task, kept = SMOOTH[name](), tasks(1, torch.float32)[0], []
    for checkpoint in (False, True):
        learner = exact_learner(module, Recursion("forward"), checkpoint)
        model = learner._built.model
        with Watch() as watch, forward_ad.dual_level(), twice_differentiable():
            duals = [forward_ad.make_dual(p, torch.ones_like(p)) for p in model.params]
            buffers = model.clone_buffers()
            graph = model.evaluate(loss, duals, buffers, task.query_x, task.query_y)
            kept.append(watch.alive())
        assert graph[0].requires_grad
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize(("checkpoint", "expected"), [(False, 3), ("second-order", 4), (True, 6)])
def test_what_is_recomputed(checkpoint: Checkpoint, expected: int) -> None:
    """Passes of the support set, of the query set, and of the support set in the sweep."""
    runs, module = [], images(inplace=False).double()
    module[0].register_forward_hook(lambda *_: runs.append(0))
    exact_learner(module, Recursion("forward"), checkpoint).step(tasks(1))
    assert len(runs) == expected


def test_segments_with_results_of_several_kinds() -> None:
    """Tuples, unused and integer results, `None`, and arguments without a gradient."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.second = nn.Linear(16, 16)

        def forward(self, x: Tensor, extra: tuple[Tensor, None]) -> tuple:
            y = torch.tanh(self.first(x)) * extra[0]
            return (y, self.second(y)), {"largest": y.argmax(-1), "nothing": None}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))
            self.head = nn.Linear(16, WAYS)

        def forward(self, x: Tensor) -> Tensor:
            x, offset = x.flatten(1), 0
            for block in self.blocks:
                (x, _), others = block(x, extra=(torch.full((16,), 0.9, dtype=x.dtype), None))
                assert others["nothing"] is None
                offset = offset + others["largest"][:, None]
            return self.head(x) + 0.01 * offset

    module, batch = Net().double(), tasks()
    found = [
        exact_learner(copy.deepcopy(module), Exact(), option, steps=2).meta_gradient(batch)[0]
        for option in (False, True)
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_checkpointing_that_would_save_nothing_is_rejected() -> None:
    for metagrad in (Recursion("reverse"), Recursion(graphs=2), Implicit()):
        with pytest.raises(ValueError, match=r"expected Exact, Recursion with hvp='forward'"):
            exact_learner(images(), metagrad, checkpoint=True)
    with pytest.raises(ValueError, match="takes no second derivatives"):
        exact_learner(images(), FirstOrder(), checkpoint="second-order")
    with pytest.raises(ValueError, match="must be True, False or 'second-order'; got 'all'"):
        exact_learner(images(), Exact(), checkpoint="all")


def test_comparison_with_a_meta_gradient_that_keeps_its_activations() -> None:
    learner = exact_learner(images().double(), Exact(), checkpoint=True)
    batch, found = tasks(), []
    for metagrad in (Exact(), Recursion("reverse")):
        torch.manual_seed(1)
        found.append(learner.with_components(metagrad=metagrad).meta_gradient(batch)[0])
    torch.testing.assert_close(*found)


def test_checkpointing_needs_submodules() -> None:
    with pytest.raises(ValueError, match=r"Tied has none. Put its layers into one"):
        FOMAML(Tied(), loss, inner_lr=0.1, checkpoint=True)
    compiled = torch.compile(images(), backend="eager")
    with pytest.raises(ValueError, match="cannot change a compiled module"):
        FOMAML(compiled, loss, inner_lr=0.1, checkpoint=True)
