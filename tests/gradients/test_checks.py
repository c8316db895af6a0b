"""Sharded and meta-device parameters are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import fastmeta


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def learner(module: nn.Module) -> fastmeta.MetaLearner:
    return fastmeta.GSL(module, F.cross_entropy, inner_lr=0.1)


def replicated(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    whole = distribute_tensor(module[2].weight.detach(), mesh, [Replicate()])
    module[2].weight = nn.Parameter(whole)
    return module


def with_buffer(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    module.register_buffer("level", distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    return module


Wrap = Callable[[nn.Module, DeviceMesh], nn.Module]
WRAPPED: dict[str, tuple[Wrap, str]] = {
    "fully_shard": (
        lambda m, mesh: fully_shard(m, mesh=mesh),
        r"the parameter '0.weight' is a DTensor, .*Shard.*"
        r"expected plain tensors, complete on every",
    ),
    "replicated": (replicated, r"the parameter '2.weight' is a DTensor, .*Replicate"),
    "buffer": (with_buffer, r"the buffer 'level' is a DTensor"),
    "ddp": (
        lambda m, _: DistributedDataParallel(m),
        r"the module is wrapped in DistributedDataParallel.*Pass module.module, and sharding=",
    ),
    "part in ddp": (
        lambda m, _: nn.Sequential(DistributedDataParallel(m)),
        r"the submodule '0' is wrapped in DistributedDataParallel",
    ),
    "fsdp": (
        lambda m, _: FullyShardedDataParallel(m, device_id=torch.device("cpu")),
        r"wrapped in FullyShardedDataParallel; expected plain tensors.*shards the tasks",
    ),
    "meta": (
        lambda m, _: m.to("meta"),
        r"the parameter '0.weight' is on the meta device.*module.to_empty",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", WRAPPED)
def test_a_learner_refuses(name: str, mesh: DeviceMesh) -> None:
    wrap, message = WRAPPED[name]
    with pytest.raises(TypeError, match=message):
        learner(wrap(mlp(), mesh))


def test_the_optimizer_refuses(mesh: DeviceMesh) -> None:
    with pytest.raises(
        TypeError, match=r"parameter 0 of group 0 is a DTensor, .*complete on every"
    ):
        fastmeta.GSLOptimizer(fully_shard(mlp(), mesh=mesh).parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"parameter 0 of group 0 is on the meta device"):
        fastmeta.GSLOptimizer(mlp().to("meta").parameters(), lr=0.1)


def test_a_refused_group_leaves_the_optimizer_unchanged(mesh: DeviceMesh) -> None:
    module = mlp()
    optimizer = fastmeta.GSLOptimizer(module.parameters(), lr=0.1)
    part = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    with pytest.raises(TypeError, match="is a DTensor"):
        optimizer.add_param_group({"params": [part]})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 1
    before = [p.detach().clone() for p in module.parameters()]
    module(torch.randn(5, 3)).square().sum().backward()
    with pytest.warns(UserWarning, match="without a marked task"):
        optimizer.step()
    for param, old in zip(module.parameters(), before, strict=True):
        assert not torch.equal(param, old)


def test_a_layout_refuses(mesh: DeviceMesh) -> None:
    tensors: list[Tensor] = [torch.ones(2), distribute_tensor(torch.ones(4), mesh, [Shard(0)])]
    with pytest.raises(TypeError, match="tensor 1 of the layout is a DTensor"):
        fastmeta.FlatLayout.of(tensors)


def test_the_module_in_ddp_is_accepted(mesh: DeviceMesh) -> None:
    wrapped = DistributedDataParallel(mlp())
    batch = fastmeta.TaskBatch(
        *(torch.randn(2, 4, 3), torch.randint(2, (2, 4))),
        *(torch.randn(2, 6, 3), torch.randint(2, (2, 6))),
    )
    assert learner(wrapped.module).step(batch).query_loss.isfinite().all()
