"""Options of every learner: autocast and activation checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta import FOMAML, GSL, MAML, MetaLearner, Reptile
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion
from tests.helpers.problems import WAYS, Tied, loss, tasks

FIRST_ORDER = {"fomaml": FOMAML, "gsl": GSL, "reptile": Reptile}
SECOND_ORDER = {"exact": Exact(), "recursion": Recursion(), "forward": Recursion("forward")}


class Residual(nn.Module):
    """A list of composite members, called with a keyword, with dropout and buffers of their own."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Tanh())
            self.out = nn.utils.spectral_norm(nn.Linear(24, 16))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor, scale: float) -> Tensor:
            self.calls += 1
            y = nn.functional.dropout(self.net(x), 0.3, self.training)
            return x + scale * torch.tanh(self.calls) * self.out(y)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.blocks[2].net = self.blocks[0].net  # tied
        self.head = nn.Linear(16, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


def images(inplace: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None)),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(24, WAYS),
    )


def tied() -> nn.Module:
    first = nn.Linear(16, 16)
    layers = [nn.Flatten(), first, nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, WAYS)]
    layers[3].weight = first.weight
    layers[3].bias.requires_grad_(False)
    return nn.Sequential(*layers)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return nn.Sequential(nn.Flatten(1, 2), encoder, nn.Flatten(), nn.Linear(16, WAYS))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "images": images,
    "residual": Residual,
    "tied": tied,
    "transformer": transformer,
}


def attributes(module: nn.Module) -> list[tuple[str, ...]]:
    return [tuple(vars(m)) for m in module.modules()]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_checkpoints_change_nothing(method: str, name: str, fuse: bool) -> None:
    """Gradients, outputs and buffers, dropout masks included."""
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
        results[-1].append(torch.rand(1))  # the generator is where it was
        assert attributes(own) == before
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_checkpoints_with_learned_rates() -> None:
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
    """Sees every tensor that is computed."""

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
        """Bytes of those that are still there."""
        return sum(size for ref, size in self.storages.values() if not ref.expired())


@pytest.mark.parametrize("name", ["images", "residual", "transformer"])
def test_checkpoints_keep_less(name: str) -> None:
    """What is alive between the forward pass and the backward pass."""
    module, task, kept = MODULES[name](), tasks(1, torch.float32)[0], []
    for checkpoint in (False, True):
        model = FOMAML(module, loss, inner_lr=0.1, checkpoint=checkpoint)._model
        buffers = model.clone_buffers()
        with Watch() as watch:
            graph = model.evaluate(loss, model.params, buffers, task.query_x, task.query_y)
        assert graph[0].requires_grad
        kept.append(watch.alive())
    assert kept[1] < 0.6 * kept[0]


def test_each_part_runs_twice() -> None:
    runs, module = [], images().double()
    module[0].register_forward_hook(lambda *_: runs.append(0))
    FOMAML(module, loss, inner_lr=0.1, inner_steps=1, checkpoint=True).step(tasks(1))
    assert len(runs) == 4  # support and query


@pytest.mark.parametrize("metagrad", SECOND_ORDER.values(), ids=SECOND_ORDER)
def test_checkpoints_are_refused_for_second_derivatives(metagrad: MetaGradient) -> None:
    with pytest.raises(ValueError, match=r"first-order meta-gradient such as FirstOrder"):
        MetaLearner(
            images(),
            loss,
            adaptation=SGD(0.1),
            metagrad=metagrad,
            aggregation=Mean(),
            checkpoint=True,
        )


def test_checkpoints_need_parts() -> None:
    with pytest.raises(ValueError, match=r"Tied has none. Put its layers into one"):
        FOMAML(Tied(), loss, inner_lr=0.1, checkpoint=True)
    compiled = torch.compile(images(), backend="eager")
    with pytest.raises(ValueError, match="cannot change a compiled module"):
        FOMAML(compiled, loss, inner_lr=0.1, checkpoint=True)


AUTOCAST = {
    "maml": lambda m, **o: MAML(m, loss, inner_lr=0.1, inner_steps=2, **o),
    "recursion": lambda m, **o: exact(m, Recursion(), **o),
    "forward": lambda m, **o: exact(m, Recursion("forward"), **o),
    **{
        name: lambda m, learner=learner, **o: learner(m, loss, inner_lr=0.1, inner_steps=2, **o)
        for name, learner in FIRST_ORDER.items()
    },
}


def exact(module: nn.Module, metagrad: MetaGradient, **options: object) -> MetaLearner:
    return MetaLearner(
        module, loss, adaptation=SGD(0.1, 2), metagrad=metagrad, aggregation=Mean(), **options
    )


@pytest.mark.parametrize("method", AUTOCAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(method: str, dtype: torch.dtype) -> None:
    """Outputs have the dtype; parameters and gradients are float32 and close to those without."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Softplus(), nn.Linear(32, WAYS))
    batch, seen = tasks(dtype=torch.float32), []
    module[1].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    results = []
    for autocast in (None, dtype):
        seen.clear()
        learner = AUTOCAST[method](copy.deepcopy(module), autocast=autocast)
        gradient, result = learner.meta_gradient(batch)
        results.append((gradient, result.query_loss))
        assert gradient.dtype == torch.float32
        expected = torch.float32 if autocast is None else dtype
        assert set(seen) == {expected}
        assert result.query_output.dtype == learner.predict(batch).dtype == expected
        fast = learner.adapt(batch.support_x[0], batch.support_y[0])
        assert {t.dtype for t in fast.values()} == {torch.float32}
        assert not torch.is_autocast_enabled("cpu")
    (plain, plain_loss), (found, found_loss) = results
    assert 0 < (found - plain).norm() < 0.05 * plain.norm()
    torch.testing.assert_close(found_loss.float(), plain_loss, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_autocast_of_images_learns(checkpoint: bool) -> None:
    batch, module = tasks(dtype=torch.float32), images()
    del module[4]  # dropout
    learner = FOMAML(module, loss, inner_lr=0.1, autocast=torch.bfloat16, checkpoint=checkpoint)
    losses = [learner.step(batch).query_loss.mean().item() for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module[1].num_batches_tracked == 30 * 2


def test_autocast_and_checkpoints_agree() -> None:
    module, batch, found = images(), tasks(dtype=torch.float32), []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        learner = FOMAML(
            copy.deepcopy(module),
            loss,
            inner_lr=0.1,
            autocast=torch.bfloat16,
            checkpoint=checkpoint,
        )
        found.append(learner.meta_gradient(batch)[0])
    torch.testing.assert_close(*found)


def test_bad_autocast() -> None:
    with pytest.raises(ValueError, match=r"must be torch.bfloat16 or torch.float16, got torch.fl"):
        FOMAML(images(), loss, inner_lr=0.1, autocast=torch.float32)
    with pytest.raises(ValueError, match=r"needs float32 parameters.*got torch.float64.*\.float"):
        FOMAML(images().double(), loss, inner_lr=0.1, autocast=torch.bfloat16)


@pytest.mark.parametrize("options", [{"autocast": torch.bfloat16}, {"checkpoint": True}])
def test_the_mlp_engine_gives_way(options: dict) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, WAYS))
    learner = FOMAML(module, loss, inner_lr=0.1, engine="mlp", **options)
    with pytest.raises(ValueError, match=f"cannot run this: the learner has {next(iter(options))}"):
        learner.step(tasks(dtype=torch.float32))


def test_a_compiled_module_learns() -> None:
    """By AOTAutograd, but without its code generator."""
    batch, results = tasks(dtype=torch.float32), []
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, WAYS))
    for own in (module, torch.compile(copy.deepcopy(module), backend="aot_eager")):
        results.append(FOMAML(own, loss, inner_lr=0.1, inner_steps=2).meta_gradient(batch)[0])
    torch.testing.assert_close(*results)
