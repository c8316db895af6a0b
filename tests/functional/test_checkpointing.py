"""Learners with activation checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta import FOMAML, MetaLearner
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion
from tests.functional.checkpointing_cases import FIRST_ORDER, MODULES, images
from tests.helpers.problems import Tied, loss, tasks

SECOND_ORDER = {"exact": Exact(), "recursion": Recursion(), "forward": Recursion("forward")}


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


@pytest.mark.parametrize("metagrad", SECOND_ORDER.values(), ids=SECOND_ORDER)
def test_checkpointing_is_refused_for_second_derivatives(metagrad: MetaGradient) -> None:
    with pytest.raises(ValueError, match=r"first-order meta-gradient such as FirstOrder"):
        MetaLearner(
            images(),
            loss,
            adaptation=SGD(0.1),
            metagrad=metagrad,
            aggregation=Mean(),
            checkpoint=True,
        )


def test_checkpointing_needs_submodules() -> None:
    with pytest.raises(ValueError, match=r"Tied has none. Put its layers into one"):
        FOMAML(Tied(), loss, inner_lr=0.1, checkpoint=True)
    compiled = torch.compile(images(), backend="eager")
    with pytest.raises(ValueError, match="cannot change a compiled module"):
        FOMAML(compiled, loss, inner_lr=0.1, checkpoint=True)
