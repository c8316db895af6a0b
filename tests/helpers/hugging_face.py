"""Small random models of Hugging Face in float64, and the plain MAML loop over them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import TaskBatch
from fastmeta.adaptation import SGD, Adam, Adaptation

os.environ["HF_HUB_OFFLINE"] = "1"
hf = pytest.importorskip("transformers", reason="needs transformers")

VOCABULARY, WAYS = 11, 3
ATTENTION: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
# Larger than the default, so that second derivatives matter.
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.3}


def gpt2(**options: Any) -> nn.Module:
    """Tied embeddings."""
    config = hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **options},
        bos_token_id=0,
        eos_token_id=0,
    )
    return hf.GPT2LMHeadModel(config).double().train()


def llama(own_norms: bool = False, **options: Any) -> nn.Module:
    """Grouped queries, SiLU, buffers that are not saved.

    Args:
        own_norms: keep its norms, which convert their inputs to float32.
        **options: of the configuration.
    """
    config = hf.LlamaConfig(
        **{**ATTENTION, "num_attention_heads": 4},
        **SIZES,
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        max_position_embeddings=16,
        **options,
    )
    module = hf.LlamaForCausalLM(config)
    for parent in [] if own_norms else list(module.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(parent, name, RMSNorm(16))
    return module.double().train()


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def bert(**options: Any) -> nn.Module:
    config = hf.BertConfig(
        **ATTENTION,
        **SIZES,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        num_labels=WAYS,
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **options},
    )
    return hf.BertForSequenceClassification(config).double().train()


def vit(**options: Any) -> nn.Module:
    config = hf.ViTConfig(
        **ATTENTION,
        **SIZES,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=WAYS,
        **options,
    )
    return hf.ViTForImageClassification(config).double().train()


def with_lora(module: nn.Module) -> nn.Module:
    """`peft`'s LoRA of the attention, with random weights instead of zeros."""
    peft = pytest.importorskip("peft", reason="needs peft")
    gpt = "GPT2" in type(module).__name__
    config = peft.LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["c_attn"] if gpt else ["q_proj", "v_proj"],
        fan_in_fan_out=gpt,
        init_lora_weights=False,
    )
    return peft.get_peft_model(module, config).double()


def language_tasks(tasks: int = 2, examples: int = 2, tokens: int = 6) -> TaskBatch:
    """Padded sequences as inputs and as targets."""
    ids = torch.randint(1, VOCABULARY, (2, tasks, examples, tokens))
    mask = torch.ones_like(ids)
    mask[..., 0, -2:] = 0
    x = [{"input_ids": ids[i], "attention_mask": mask[i]} for i in range(2)]
    return TaskBatch(x[0], ids[0], x[1], ids[1])


def text_tasks() -> TaskBatch:
    batch, y = language_tasks(), torch.randint(WAYS, (2, 2, 2))
    return TaskBatch(batch.support_x, y[0], batch.query_x, y[1])


def image_tasks() -> TaskBatch:
    x, y = torch.randn(2, 2, 3, 1, 8, 8, dtype=torch.float64), torch.randint(WAYS, (2, 2, 3))
    return TaskBatch({"pixel_values": x[0]}, y[0], {"pixel_values": x[1]}, y[1])


def language_loss(output: Any, y: Tensor) -> Tensor:
    """Of the next token; the models' own converts to float32."""
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def class_loss(output: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(output.logits, y)


INNER: dict[str, Callable[[int], Adaptation]] = {
    "sgd": lambda steps: SGD(0.1, steps),
    "momentum": lambda steps: SGD(0.1, steps, momentum=0.7),
    "adam": lambda steps: Adam(0.05, steps, betas=(0.8, 0.95), eps=0.1),
}


def update(inner: str, step: int, p: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    """One step of an inner optimizer, as in the documentation of `torch.optim`."""
    if inner == "sgd":
        return p - 0.1 * g
    if inner == "momentum":
        state["buffer"] = 0.7 * state.get("buffer", 0) + g
        return p - 0.1 * state["buffer"]
    mean = state["mean"] = 0.8 * state.get("mean", 0) + 0.2 * g
    square = state["square"] = 0.95 * state.get("square", 0) + 0.05 * g * g
    zero = square == 0  # such as of tokens that do not occur; the root's derivative is 0 there
    root = torch.where(zero, 0, (torch.where(zero, 1, square) / (1 - 0.95 ** (step + 1))).sqrt())
    return p - 0.05 * (mean / (1 - 0.8 ** (step + 1))) / (root + 0.1)


def reference_meta_gradient(
    module: nn.Module,
    batch: TaskBatch,
    loss: Callable[[Any, Any], Tensor],
    inner: str,
    steps: int,
    adapted: Callable[[str], bool] = lambda name: True,
) -> Tensor:
    """The mean meta-gradient `(P,)`, by autograd through the unrolled loop.

    Args:
        module: the model.
        batch: the tasks.
        loss: of outputs and targets.
        inner: name of the inner optimizer.
        steps: inner steps.
        adapted: which of the trainable parameters the inner loop adapts.
    """
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}
    total = torch.zeros(sum(p.numel() for p in params.values()), dtype=torch.float64)
    for task in batch:
        fast = dict(params)
        states: dict[str, dict[str, Tensor]] = {name: {} for name in params}
        names = [name for name in params if adapted(name)]
        for k in range(steps):
            value = loss(functional_call(module, fast, (), task.support_x), task.support_y)
            grads = torch.autograd.grad(
                value, [fast[name] for name in names], create_graph=True, allow_unused=True
            )
            for name, g in zip(names, grads, strict=True):
                if g is not None:
                    fast[name] = update(inner, k, fast[name], g, states[name])
        value = loss(functional_call(module, fast, (), task.query_x), task.query_y)
        found = torch.autograd.grad(value, list(params.values()), materialize_grads=True)
        total += torch.cat([g.flatten() for g in found]) / len(batch)
    return total
