"""Comparison with a higher precision, and the check of the first meta-step."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import FOMAML, MAML, CoLearner, MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, MetaSGD, lslr
from fastmeta.aggregation import Mean
from fastmeta.distributed import Sharding
from fastmeta.learners import METHODS, Fidelity, build, compare_precision, compare_with_exact
from fastmeta.learners._precision import FirstStepCheck
from fastmeta.metagrad import CentralDifference, Exact, MetaGradient, MultiStep, Recursion
from fastmeta.models import Conv4
from tests.distributed.ranks import run_ranks
from tests.helpers.problems import WAYS, Drifting, Noisy, convolution, loss, mlp, tasks
from tests.helpers.transformers import GPT, language_batch

LOW = {"autocast": torch.bfloat16}


def learner(module: nn.Module, metagrad: MetaGradient | None = None, **options: Any) -> MetaLearner:
    options.setdefault("adaptation", SGD(0.1, 2))
    return MetaLearner(module, loss, metagrad=metagrad or Exact(), aggregation=Mean(), **options)


def single(count: int = 3) -> TaskBatch:
    return tasks(count, torch.float32)


class Offset(nn.Module):
    """Subtracts what it has added: a bfloat16 near 301 is even and has no digits for the rest."""

    def __init__(self, offset: float = 301.0) -> None:
        super().__init__()
        self.first, self.head, self.offset = nn.Linear(16, 8), nn.Linear(8, WAYS), offset
        nn.init.constant_(self.first.bias, offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x.flatten(1)) - self.offset))


class Large(nn.Module):
    """Has activations of about `scale`: those above 65504 overflow in float16."""

    def __init__(self, scale: float = 1e6) -> None:
        super().__init__()
        self.net, self.scale = mlp(), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale / self.scale


class HostNoise(nn.Module):
    """Draws from the generators of Python and NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1 + random.random() + np.random.rand())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "b-small" and "warp" not in m])
def test_float64_agrees_with_itself(method: str) -> None:
    co_learner = CoLearner(nn.Linear(WAYS, WAYS).double(), "") if method == "cml" else None
    steps = 0 if method == "mamf" else 2
    own = build(
        method, mlp().double(), loss, inner_lr=0.1, inner_steps=steps, co_learner=co_learner
    )
    found = compare_precision(own, tasks(3))
    assert (found.rates is not None) == bool(own.adaptation.rates)
    for part in filter(None, (found, found.rates)):
        assert part.relative_error < 1e-10
        assert part.task_relative_error.max() < 1e-10
        torch.testing.assert_close(part.cosine, torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(part.norm_ratio, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("metagrad", "adaptation"),
    [(Exact, SGD), (Recursion, SGD), (MultiStep, lslr), (Exact, MetaSGD)],
    ids=lambda kind: kind.__name__,
)
def test_values(metagrad: Any, adaptation: Any, dtype: torch.dtype) -> None:
    """Against a learner of the same module in `dtype`, built by hand."""
    module, batch = mlp(), single()
    own = learner(module, metagrad(), adaptation=adaptation(0.1, 2), check_precision=False, **LOW)
    found = compare_precision(own, batch, dtype)
    high = learner(
        copy.deepcopy(module).to(dtype), metagrad(), adaptation=adaptation(0.1, 2), engine="loop"
    )
    inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in vars(batch).items()}
    flat, exact = own.meta_gradient(batch)[0], high.meta_gradient(TaskBatch(**inputs))[0]
    size = sum(p.numel() for p in module.parameters())
    flat, exact, error = flat[:size], exact[:size], (flat - exact)[:size]
    for value, expected in (
        (found.cosine, F.cosine_similarity(flat, exact, 0)),
        (found.norm_ratio, flat.norm() / exact.norm()),
        (found.relative_error, error.norm() / exact.norm()),
    ):
        torch.testing.assert_close(value, expected.to(dtype), rtol=1e-4, atol=1e-6)
    assert 1e-4 < found.relative_error < 0.05
    sizes = [p.numel() for p in module.parameters()]
    parts = [part.norm() / exact.norm() for part in error.split(sizes)]
    assert list(found.layer_error) == [name for name, _ in module.named_parameters()]
    torch.testing.assert_close(
        list(found.layer_error.values()), [p.to(dtype) for p in parts], rtol=1e-4, atol=1e-7
    )
    if adaptation is not SGD:
        assert found.rates is not None
        assert 0 < found.rates.relative_error < 0.1
        assert list(found.rates.layer_error) == list(found.layer_error)


def test_maml_in_a_higher_precision() -> None:
    module, batch = mlp().double(), tasks(3)
    with_dtype = compare_with_exact(FOMAML(module, loss, inner_lr=0.1), batch, torch.float64)
    expected = compare_with_exact(FOMAML(module, loss, inner_lr=0.1), batch)
    torch.testing.assert_close(vars(with_dtype), vars(expected))
    low = compare_with_exact(
        FOMAML(module.float(), loss, inner_lr=0.1, **LOW), single(), torch.float64
    )
    assert low.cosine.dtype == torch.float64
    assert low.rates is None


@pytest.mark.parametrize(("dtype", "offset"), [(torch.bfloat16, 301.0), (torch.float16, 30009.0)])
def test_parameters_in_half_precision(dtype: torch.dtype, offset: float) -> None:
    module, batch = Offset(offset).to(dtype), tasks(2, dtype)
    found = compare_precision(learner(module), batch, torch.float32)
    assert found.cosine.dtype == torch.float32
    assert found.cosine < 0.95
    with pytest.warns(RuntimeWarning, match=f"meta-step in {str(dtype)[6:]} does not agree"):
        learner(module).step(batch)
    learner(mlp().to(dtype)).step(batch)  # no warning


def test_ambient_autocast_is_of_the_learner_only() -> None:
    own, batch = learner(mlp()), single()
    with torch.autocast("cpu", torch.bfloat16):
        assert 1e-4 < compare_precision(own, batch).relative_error < 0.05
    assert compare_precision(own, batch).relative_error < 1e-5
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(RuntimeWarning, match="not agree"):
        learner(Offset()).step(batch)


MAKE: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "dropout": Noisy,
    "drifting buffer": Drifting,
    "running statistics": lambda: convolution(True),
    "host generators": HostNoise,
}


@pytest.mark.parametrize("name", MAKE)
def test_well_conditioned_networks_pass(name: str) -> None:
    """In the same dropout masks and buffers, or they would not agree."""
    own, batch = learner(MAKE[name](), **LOW), single()
    assert compare_precision(own, batch).cosine > 0.99
    own.step(batch)  # warnings are errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metagrad", [Exact, Recursion])
def test_attention_and_layer_norm(metagrad: Callable[[], MetaGradient], dtype: torch.dtype) -> None:
    own, batch = learner(GPT(9), metagrad(), autocast=dtype), language_batch(9)
    assert compare_precision(own, batch).cosine > 0.999
    own.step(batch)


def test_differences_of_gradients_are_checked() -> None:
    """The default radius is that of float32, far below the rounding errors of bfloat16."""
    own = learner(GPT(9), CentralDifference(), **LOW)
    with pytest.warns(RuntimeWarning, match="does not agree with float32"):
        own.step(language_batch(9))


def test_cancellation_is_detected() -> None:
    own = learner(Offset(), **LOW)
    found = compare_precision(own, single())
    assert found.cosine < 0.95
    assert "largest part of the error" in str(found)
    with pytest.warns(RuntimeWarning) as caught:
        own.step(single())
    message = str(caught[0].message)
    for part in ("cosine", "relative error", "expected a cosine of at least 0.95", "float32"):
        assert part in message
    assert "is in first.weight" in message or "is in head.weight" in message
    assert caught[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="first meta-step"):
        learner(Offset(), Recursion(), adaptation=MetaSGD(0.1, 2), **LOW).step(single())


def test_batch_norm_of_a_deep_network_is_detected() -> None:
    own = MAML(Conv4(1, 8, WAYS, 16), loss, inner_lr=0.4, inner_steps=5, **LOW)
    x = torch.randn(2, 3, WAYS, 1, 8, 8)
    y = torch.arange(WAYS).expand(3, -1)
    with pytest.warns(RuntimeWarning, match="does not agree"):
        own.step(TaskBatch(x[0], y, x[1], y))


def test_overflow_is_reported() -> None:
    batch = single()
    own = learner(Large(), autocast=torch.float16)
    found = compare_precision(own, batch)
    assert (found.cosine, found.relative_error, found.norm_ratio) == (0, torch.inf, torch.inf)
    assert not found.finite.any()
    assert "not finite: the meta-gradients of tasks 0, 1, 2" in str(found)
    assert "nan" not in str(found)
    message = r"is not finite in float16, but is finite in float32.*torch.bfloat16"
    with pytest.warns(RuntimeWarning, match=message):
        own.step(batch)


def test_overflow_of_one_task() -> None:
    batch = single()
    batch.query_x[1] *= 1e5
    own = learner(Large(1.0), autocast=torch.float16, non_finite="skip")
    assert compare_precision(own, batch).finite.tolist() == [True, False, True]
    with pytest.warns(
        RuntimeWarning, match=r"meta-gradient of 1 of the tasks .*not finite in float16"
    ):
        own.step(batch)


def test_underflow_is_detected() -> None:
    own = MetaLearner(
        mlp(), lambda x, y: 1e-9 * loss(x, y) * x.new_ones(()), adaptation=SGD(0.1),
        metagrad=Exact(), aggregation=Mean(), autocast=torch.float16,
    )  # fmt: skip
    found = compare_precision(own, single())
    assert found.cosine < 0.95


def test_a_reference_that_is_not_finite() -> None:
    batch = single()
    batch.query_x[0] = torch.nan
    own = learner(mlp(), **LOW)
    found = compare_precision(own, batch)
    assert found.cosine.isnan()
    assert found.task_cosine.isnan().tolist() == [True, False, False]
    assert "reference is not finite" in str(found)
    own.step(batch)  # no matter of precision: no warning


def trained(make: Callable[[], nn.Module], options: dict[str, Any], check: bool) -> dict[str, Any]:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    own = build("maml", make(), loss, inner_lr=0.1, inner_steps=2, check_precision=check, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [vars(own.step(single(2))) for _ in range(3)]
    return {
        **own.state_dict(),
        "results": results,
        "generators": [torch.get_rng_state(), random.random(), np.random.rand()],
    }


OPTIONS: tuple[dict[str, Any], ...] = (
    {"metagrad": "recursion", "aggregation": "pcgrad"},
    {"metagrad": "multi-step", "adaptation": "lslr"},
    {"adaptation": "meta-sgd", "aggregation": "agreement"},
    {"metagrad": "gsl", "metagrad_options": {"variant": "R4", "every": 2}},
)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in [*MAKE, "offset"]), *(("dropout", o) for o in OPTIONS)],
    ids=str,
)
def test_training_is_the_same_with_and_without_the_check(
    name: str, options: dict[str, Any]
) -> None:
    make = {**MAKE, "offset": Offset}[name]
    options = {**options, **LOW, "non_finite": "skip"}
    found = [trained(make, options, check) for check in (True, False)]
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every check."""
    calls: list[str] = []
    compare = FirstStepCheck.compare

    def counted(self: FirstStepCheck, batch: TaskBatch, flat: Tensor) -> None:
        calls.append("check")
        compare(self, batch, flat)

    monkeypatch.setattr(FirstStepCheck, "compare", counted)
    return calls


def test_the_first_step_alone_is_checked(checks: list[str]) -> None:
    module, batch = mlp(), single()
    own = learner(module, **LOW)
    for _ in range(3):
        own.step(batch)
    assert len(checks) == 1
    resumed = learner(mlp(), **LOW)
    resumed.load_state_dict(own.state_dict())
    resumed.step(batch)
    assert len(checks) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: learner(mlp()),
        lambda: learner(mlp(), engine="loop"),
        lambda: learner(mlp(), check_precision=False, **LOW),
        lambda: learner(mlp(), Exact(layers="none"), **LOW),
        lambda: FOMAML(mlp(), loss, inner_lr=0.1, **LOW),
    ],
)
def test_nothing_to_check(make: Callable[[], MetaLearner], checks: list[str]) -> None:
    make().step(single())
    assert not checks


def test_comparing_does_not_check(checks: list[str]) -> None:
    own = learner(mlp(), **LOW)
    compare_precision(own, single())
    compare_with_exact(own, single(), torch.float32)
    assert not checks
    assert own.steps_taken == 0


@pytest.mark.parametrize("name", MAKE)
def test_no_side_effects(name: str) -> None:
    finished: list[dict[str, Any]] = []
    batches = [single() for _ in range(3)]
    module = MAKE[name]()
    for looks in (False, True):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        own = learner(copy.deepcopy(module), adaptation=MetaSGD(0.1, 2), **LOW)
        for batch in batches:
            if looks:
                assert isinstance(compare_precision(own, batch), Fidelity)
            own.step(batch)
        generators = [torch.get_rng_state(), random.random(), np.random.rand()]
        finished.append({**own.state_dict(), "generators": generators})
    torch.testing.assert_close(*finished, rtol=0, atol=0)


def test_frozen_parameters_and_co_learner() -> None:
    own = learner(mlp(), co_learner=CoLearner(nn.Linear(WAYS, WAYS), ""), **LOW)
    own.module[1].bias.requires_grad_(False)
    found = compare_precision(own, single())
    names = ["1.weight", "3.weight", "3.bias", "co_learner.weight", "co_learner.bias"]
    assert list(found.layer_error) == names
    assert found.cosine > 0.99
    own.step(single())


class Weighted(nn.Module):
    """A loss with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(WAYS))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x, y, self.weight)


def test_losses_with_tensors() -> None:
    module, weighted = mlp(), Weighted()
    own = MAML(module, weighted, inner_lr=0.1, **LOW)
    assert compare_precision(own, single()).cosine > 0.99
    assert weighted.weight.dtype == torch.float32
    own = MAML(module, lambda x, y: weighted(x, y), inner_lr=0.1)
    with pytest.raises(
        RuntimeError, match=r"copy of the module in torch.float64 failed.*float32\."
    ):
        compare_precision(own, single())
    assert compare_precision(own, single(), torch.float32).relative_error < 1e-5


class NotCopyable(nn.Sequential):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("no copies")


def test_a_module_that_cannot_be_copied() -> None:
    own = learner(NotCopyable(nn.Flatten(), nn.Linear(16, WAYS)), **LOW)
    with pytest.warns(RuntimeWarning, match="could not be checked.*no copies"):
        own.step(single())
    assert own.steps_taken == 1
    with pytest.raises(TypeError, match="no copies"):
        compare_precision(own, single())


def test_a_copy_that_cannot_be_run() -> None:
    def failing(x: Tensor, y: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            raise ValueError("not in float32")
        return loss(x, y)

    own = MAML(mlp(), failing, inner_lr=0.1, **LOW)
    with pytest.warns(RuntimeWarning, match="could not be checked.*not in float32"):
        own.step(single())


def test_errors() -> None:
    own = learner(mlp().double())
    with pytest.raises(ValueError, match=r"must be torch.float32 or torch.float64, got torch.bf"):
        compare_precision(own, tasks(2), torch.bfloat16)
    with pytest.raises(ValueError, match=r"as precise as the parameters, torch.float64; got"):
        compare_with_exact(own, tasks(2), torch.float32)


def test_text() -> None:
    text = str(compare_precision(learner(mlp(), adaptation=MetaSGD(0.1, 2), **LOW), single()))
    lines = text.splitlines()
    assert lines[0].startswith("cosine 1.0000, relative error 0.0")
    assert lines[1].startswith("tasks: cosine ")
    assert lines[2].startswith("largest part of the error: ")
    assert lines[3] == "learned rates:"
    exact = compare_precision(learner(mlp().double(), engine="loop", fuse=False), tasks(2))
    assert "largest part" not in str(exact)


def on_rank(
    rank: int, batch: TaskBatch, module: nn.Module
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Messages, and the parameters after training with and without the check."""
    sharding, messages, finished = Sharding(len(batch)), [], []
    for check in (True, False):
        own = learner(copy.deepcopy(module), sharding=sharding, check_precision=check, **LOW)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                own.step(sharding.part(batch))
        messages += [str(warning.message) for warning in caught]
        finished.append([p.detach() for p in own.module.parameters()])
    return messages, *finished


def test_ranks_agree(tmp_path: Path) -> None:
    ranks = run_ranks(2, on_rank, tmp_path, single(), Offset())
    assert [len(messages) for messages, *_ in ranks] == [1, 0]
    assert "does not agree" in ranks[0][0][0]
    for other in (ranks[0][2], *ranks[1][1:]):
        assert all(map(torch.equal, ranks[0][1], other))
