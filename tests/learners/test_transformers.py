"""Models of Hugging Face in learners: meta-gradients against plain autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmeta
from fastmeta import MetaLearner, RaggedTaskBatch, Task, TaskBatch
from fastmeta.adaptation import LayerPattern
from fastmeta.aggregation import Mean
from fastmeta.functional import Checkpoint, watch_attention
from fastmeta.metagrad import Exact, FirstOrder, Implicit, MetaGradient, Recursion, Reptile
from tests.helpers import hugging_face as small

Problem = tuple[Callable[..., nn.Module], Callable[[], TaskBatch], Callable[[Any, Any], Tensor]]
MODELS: dict[str, Problem] = {
    "gpt2": (small.gpt2, small.language_tasks, small.language_loss),
    "llama": (small.llama, small.language_tasks, small.language_loss),
    "bert": (small.bert, small.text_tasks, small.class_loss),
    "vit": (small.vit, small.image_tasks, small.class_loss),
    "gpt2 with LoRA": (
        lambda: small.with_lora(small.gpt2()),
        small.language_tasks,
        small.language_loss,
    ),
    "llama with LoRA": (
        lambda: small.with_lora(small.llama()),
        small.language_tasks,
        small.language_loss,
    ),
}
METAGRADS: tuple[Callable[[], MetaGradient], ...] = (
    Exact,
    Recursion,
    lambda: Recursion(hvp="forward"),
)
# With activations kept, and recomputed.
RECOMPUTED: tuple[tuple[Callable[[], MetaGradient], Checkpoint], ...] = (
    *((metagrad, False) for metagrad in METAGRADS),
    (Exact, True),
    (Recursion, "second-order"),
)


def learner(module: nn.Module, loss: Any, metagrad: Any, **options: Any) -> MetaLearner:
    options.setdefault("adaptation", small.INNER["sgd"](2))
    return MetaLearner(module, loss, metagrad=metagrad, aggregation=Mean(), **options)


def gradient(module: nn.Module, loss: Any, batch: Any, metagrad: Any, **options: Any) -> Tensor:
    return learner(module, loss, metagrad, **options).meta_gradient(batch)[0]


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-9 * expected.norm())


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("inner", small.INNER)
@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_autograd(name: str, inner: str, steps: int) -> None:
    make, tasks, loss = MODELS[name]
    module, batch = make(), tasks()
    with sdpa_kernel(SDPBackend.MATH):
        expected = small.reference_meta_gradient(module, batch, loss, inner, steps)
    rule = small.INNER[inner](steps)
    for metagrad, checkpoint in RECOMPUTED:
        options = {"adaptation": rule, "checkpoint": checkpoint}
        with watch_attention() as calls:
            found = gradient(module, loss, batch, metagrad(), **options)
        assert close(found, expected)
        assert {call.reason for call in calls} == {None}  # all by the compiled op
    first_order = gradient(module, loss, batch, FirstOrder(), adaptation=rule)
    assert (first_order - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("name", ["gpt2", "bert"])  # the others' softmax is in float32
def test_eager_attention(name: str) -> None:
    make, tasks, loss = MODELS[name]
    module, batch = make(attn_implementation="eager"), tasks()
    expected = small.reference_meta_gradient(module, batch, loss, "sgd", 2)
    for metagrad in METAGRADS:
        with watch_attention() as calls:
            assert close(gradient(module, loss, batch, metagrad()), expected)
        assert not calls


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_lora_is_adapted_and_all_parameters_are_trained(name: str) -> None:
    make, tasks, loss = MODELS[f"{name} with LoRA"]
    module, batch = make().requires_grad_(True), tasks()
    with sdpa_kernel(SDPBackend.MATH):
        expected = small.reference_meta_gradient(
            module, batch, loss, "momentum", 2, lambda n: "lora_" in n
        )
    rule = LayerPattern(small.INNER["momentum"](2), "*lora_*")
    for metagrad in METAGRADS:
        assert close(gradient(module, loss, batch, metagrad(), adaptation=rule), expected)


def test_lora_alone_has_a_meta_gradient() -> None:
    make, tasks, loss = MODELS["llama with LoRA"]
    module = make()
    before = {name: p.clone() for name, p in module.named_parameters()}
    own = learner(module, loss, Exact())
    own.step(tasks())
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if "lora_" in name}
    batch = tasks()
    assert set(own.adapt(batch[0].support_x, batch[0].support_y)) == changed


def with_labels(batch: TaskBatch) -> TaskBatch:
    support, query = batch.support_x, batch.query_x
    return TaskBatch(
        {**support, "labels": batch.support_y}, None, {**query, "labels": batch.query_y}, None
    )


@pytest.mark.parametrize("name", ["bert", "vit"])  # the language models' loss is in float32
def test_the_model_computes_its_loss(name: str) -> None:
    make, tasks, loss = MODELS[name]
    module, batch = make(), tasks()
    expected, result = learner(module, loss, Exact()).meta_gradient(batch)
    labelled = learner(module, fastmeta.model_loss, Exact())
    found, own = labelled.meta_gradient(with_labels(batch))
    assert close(found, expected)
    torch.testing.assert_close(own.query_loss, result.query_loss)
    torch.testing.assert_close(own.query_output, result.query_output)
    assert own.query_output.shape == (*batch.query_y.shape, small.WAYS)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_language_models_with_their_own_loss_in_float32(name: str) -> None:
    """Errors of float32 arithmetic, magnified by the second derivatives."""
    module = (small.gpt2() if name == "gpt2" else small.llama(own_norms=True)).float()
    batch = small.language_tasks()
    labelled = with_labels(batch)
    with sdpa_kernel(SDPBackend.MATH):
        expected = small.reference_meta_gradient(module, batch, small.language_loss, "sgd", 2)
    for metagrad in (Exact(), Recursion()):
        own = learner(module, fastmeta.model_loss, metagrad)
        found, result = own.meta_gradient(labelled)
        assert (found - expected).norm() <= 1e-3 * expected.norm()
        assert result.query_output.shape == (*batch.query_y.shape, small.VOCABULARY)


def test_predictions_and_evaluation() -> None:
    make, tasks, loss = MODELS["bert"]
    module, batch = make(), tasks()
    own = learner(module, loss, Exact())
    evaluated = own.evaluate(batch)
    assert torch.equal(own.predict(batch), evaluated.query_output)
    _, result = own.meta_gradient(batch)
    for name in ("support_loss", "query_loss", "query_output"):
        torch.testing.assert_close(getattr(evaluated, name), getattr(result, name))


def ragged(batch: TaskBatch) -> RaggedTaskBatch:
    """The first task has fewer examples, shorter ones, and fewer queries."""
    first, second = batch
    x = [{k: v[:1, :4] for k, v in split.items()} for split in (first.support_x, first.query_x)]
    return RaggedTaskBatch(
        [Task(x[0], first.support_y[:1, :4], x[1], first.query_y[:1, :4]), second]
    )


@pytest.mark.parametrize("metagrad", [Exact, Recursion, Reptile, lambda: Implicit(lam=1.0)])
def test_ragged_tasks_are_those_tasks_one_by_one(metagrad: Any) -> None:
    module, batch = small.gpt2(), ragged(small.language_tasks())
    own = learner(module, small.language_loss, metagrad())
    found, result = own.meta_gradient(batch)
    alone = [own.meta_gradient(batch.part(i, i + 1)) for i in range(2)]
    torch.testing.assert_close(found, torch.stack([g for g, _ in alone]).mean(0))
    torch.testing.assert_close(result.query_loss, torch.cat([r.query_loss for _, r in alone]))
    assert [tuple(o.shape) for o in result.query_output] == [(1, 4, 11), (2, 6, 11)]
    assert [tuple(o.shape) for o in own.predict(batch)] == [(1, 4, 11), (2, 6, 11)]
    assert [o.shape for o in own.evaluate(batch).query_output] == [
        o.shape for o in result.query_output
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_activation_checkpointing_and_no_generation_cache(name: str) -> None:
    make, tasks, loss = MODELS[name]
    module, batch = make(), tasks()
    caches: list[bool] = []

    def watched(output: Any, y: Tensor) -> Tensor:
        caches.append(any("cache" in key or "past" in key for key in output))
        return loss(output, y)

    on = getattr(module.config, "use_cache", None)
    plain, checkpointed = (
        gradient(module, watched, batch, FirstOrder(), checkpoint=checkpoint)
        for checkpoint in (False, True)
    )
    torch.testing.assert_close(plain, checkpointed)
    assert not any(caches)
    assert getattr(module.config, "use_cache", None) is on


def test_the_models_own_checkpointing_is_rejected() -> None:
    module = small.gpt2()
    own = learner(module, small.language_loss, FirstOrder())
    module.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        own.step(small.language_tasks())
    with pytest.raises(ValueError, match="checkpoint=True"):
        learner(module, small.language_loss, FirstOrder())
    module.eval()
    own.step(small.language_tasks())


@pytest.mark.parametrize("training", [True, False])
def test_dropout(training: bool) -> None:
    dropout = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}
    module, batch = small.gpt2(**dropout).train(training), small.language_tasks()
    found = []
    for metagrad in METAGRADS:
        torch.manual_seed(0)
        found.append(gradient(module, small.language_loss, batch, metagrad()))
    assert all(close(other, found[0]) for other in found)
    torch.manual_seed(1)
    other = gradient(module, small.language_loss, batch, Exact())
    assert close(other, found[0]) != training


def test_batched_engine() -> None:
    make, tasks, loss = MODELS["vit"]
    module, batch = make(), tasks()
    expected = gradient(module, loss, batch, Exact(), engine="loop")
    for tensors in (batch, with_labels(batch)):
        own = loss if tensors is batch else fastmeta.model_loss
        found = gradient(module, own, tensors, Exact(), engine="batched")
        assert close(found, expected)
    # Models with masks read them to see whether they mask anything.
    with pytest.raises(NotImplementedError, match="engine='loop'"):
        gradient(
            small.gpt2(), small.language_loss, small.language_tasks(), Exact(), engine="batched"
        )
