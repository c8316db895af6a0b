"""MAMF: no inner loop in training, labels as texts, fine-tuning at test."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import MetaLearner, TaskBatch
from fastmeta.data import EpisodeSampler, TextDataset, label_token_ids
from fastmeta.learners import build
from fastmeta.models import LabelTextEncoder
from fastmeta.train import ConfigError, configure, train

VOCABULARY, NAMES = 64, ["a/red", "a/dark_green", "b/blue", "b/light-grey", "b/black"]


def texts(per_class: int = 8) -> TextDataset:
    ids = torch.randint(1, VOCABULARY, (len(NAMES) * per_class, 7))
    labels = torch.arange(len(NAMES)).repeat_interleave(per_class)
    return TextDataset(ids, labels, NAMES, VOCABULARY)


def sampler(
    tasks: int = 2, ways: int = 3, steps_per_task: int = 1, queries: int = 2
) -> EpisodeSampler:
    labels = label_token_ids(NAMES, VOCABULARY, 12)
    return EpisodeSampler(
        texts(), ways, 1, queries, tasks, seed=5, steps_per_task=steps_per_task, label_ids=labels
    )


def learner(method: str, module: LabelTextEncoder, **options: object) -> MetaLearner:
    return build(
        method,
        module,
        F.cross_entropy,
        inner_lr=0.01,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        **options,
    )


def same(one: MetaLearner, other: MetaLearner) -> bool:
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_without_inner_steps_maml_fomaml_and_mamf_are_one() -> None:
    source, module = sampler(), LabelTextEncoder(VOCABULARY, 8)
    methods = ("mamf", "maml", "fomaml")
    # With compiled ops, which second derivatives need, layer_norm rounds otherwise.
    models = [learner(m, copy.deepcopy(module), inner_steps=0, fuse=False) for m in methods]
    for i in range(3):
        for model in models:
            model.step(source[i])
    assert all(same(models[0], other) for other in models[1:])
    assert not same(models[0], learner("mamf", module))


def test_one_task_a_step_is_joint_training_in_that_order() -> None:
    source, module = sampler(tasks=1, steps_per_task=4), LabelTextEncoder(VOCABULARY, 8)
    plain = copy.deepcopy(module)
    model = learner("mamf", module)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for i in range(8):
        task = source[i][0]
        model.step(source[i])
        optimizer.zero_grad()
        F.cross_entropy(plain(**task.query_x), task.query_y).backward()
        optimizer.step()
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_tests_fine_tune_each_task_from_the_same_weights() -> None:
    source, module = sampler(), LabelTextEncoder(VOCABULARY, 8)
    model, batch = learner("mamf", module), source[0]
    found = model.predict(batch, steps=3)
    for i, task in enumerate(batch):
        tuned = copy.deepcopy(module)
        optimizer = torch.optim.Adam(tuned.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(tuned(**task.support_x), task.support_y).backward()
            optimizer.step()
        torch.testing.assert_close(found[i], tuned(**task.query_x), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.predict(batch)[0], module(**batch[0].query_x))


def test_classes_permuted_with_their_labels_and_texts_have_the_same_loss() -> None:
    module, task = LabelTextEncoder(VOCABULARY, 8).double(), sampler()[0][0]
    order = torch.tensor([2, 0, 1])
    labels = task.query_x["labels"][:, order]
    y = order.argsort()[task.query_y]
    value = F.cross_entropy(module(**task.query_x), task.query_y)
    other = F.cross_entropy(module(task.query_x["ids"], labels), y)
    torch.testing.assert_close(value, other)
    wrong = F.cross_entropy(module(task.query_x["ids"], labels), task.query_y)
    assert abs(value - wrong) > 1e-3


def test_the_batched_engine_agrees_on_mappings_of_inputs() -> None:
    module, batch = LabelTextEncoder(VOCABULARY, 8).double(), sampler()[0]
    expected = learner("fomaml", module, engine="loop").meta_gradient(batch)[0]
    found = learner("fomaml", module, engine="batched").meta_gradient(batch)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_inner_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected inner_steps=0, got 2. predict"):
        learner("mamf", LabelTextEncoder(VOCABULARY, 8), inner_steps=2)


def test_a_task_keeps_its_classes_for_some_steps() -> None:
    source, plain = sampler(steps_per_task=3), sampler()
    batches: list[TaskBatch] = [source[i] for i in range(6)]
    for first in (0, 3):
        for batch in batches[first : first + 3]:
            assert torch.equal(batch.ids, batches[first].ids)
    assert not torch.equal(batches[0].ids, batches[3].ids)
    # Examples are drawn anew, and parts of a meta-batch are the same tasks.
    assert not torch.equal(batches[0].query_x["ids"], batches[1].query_x["ids"])
    part = source.part(4, 1, 2)
    assert torch.equal(part.query_x["ids"], batches[4].query_x["ids"][1:])
    assert torch.equal(part.ids, batches[4].ids[1:])
    # With one step per task, tasks are as they were.
    assert torch.equal(sampler(steps_per_task=1)[3].ids, plain[3].ids)


def test_labels_are_the_texts_of_the_classes_of_a_task() -> None:
    batch = sampler()[1]
    ids = label_token_ids(NAMES, VOCABULARY, 12)
    for x in (batch.support_x, batch.query_x):
        for t in range(2):
            for row in x["labels"][t]:
                assert torch.equal(row, ids[batch.ids[t]])
    assert torch.equal(ids, label_token_ids(["red", "dark green", "blue", "light grey", "black"],
                                            VOCABULARY, 12))  # fmt: skip
    with pytest.raises(ValueError, match="'x/one_two' and 'y/one-two' have the same text"):
        label_token_ids(["x/one_two", "y/one-two"], VOCABULARY)
    with pytest.raises(ValueError, match=r"must be \(classes, L\) for the 5 classes"):
        EpisodeSampler(texts(), 3, 1, 2, 1, label_ids=ids[:4])


def scores(module: LabelTextEncoder, ids: Tensor, labels: Tensor) -> Tensor:
    """Written out: the mean of the embeddings of tokens, LayerNorm, cosines."""

    def encode(row: Tensor) -> Tensor:
        used = row[row != 0]
        if not len(used):
            return module.norm(torch.zeros(module.embedding.embedding_dim, dtype=torch.float64))
        return module.norm(module.embedding.weight[used].mean(0))

    rows = [[F.cosine_similarity(encode(a), encode(b), dim=0) for b in labels] for a in ids]
    return module.log_scale.exp() * torch.stack([torch.stack(row) for row in rows])


def test_scores_are_scaled_cosines_of_one_encoder() -> None:
    module = LabelTextEncoder(VOCABULARY, 8).double()
    ids = torch.randint(1, VOCABULARY, (4, 6)) * (torch.rand(4, 6) < 0.7)
    labels = torch.randint(1, VOCABULARY, (3, 5)) * (torch.arange(5) < 3)
    found = module(ids, labels.expand(4, 3, 5))
    torch.testing.assert_close(found, scores(module, ids, labels), rtol=1e-10, atol=1e-10)
    assert module.log_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_a_run_from_the_command_line(tmp_path) -> None:
    words = {
        **{"one": "uno un", "two": "due deux", "six": "sei", "ten": "dieci dix"},
        **{"zero": "nulla", "four": "quattro", "five": "cinque"},
    }
    rows = [f"{text} {name} {i},{name}" for name, text in words.items() for i in range(6)]
    file = tmp_path / "texts.csv"
    file.write_text("\n".join(["text,label", *rows, *(r + "x" for r in rows)]))
    options = {
        "dataset": "csv",
        "data_root": str(file),
        "data_options": {
            "val_classes": ["one", "two"],
            "test_classes": ["six", "ten"],
        },
        "method": "mamf",
        "ways": 2,
        "eval_queries": 2,
        "queries": 2,
        "steps": 4,
        "val_every": 2,
        "val_tasks": 2,
        "test_tasks": 2,
        "plots": False,
        "untrained": False,
        "out": str(tmp_path / "run"),
    }
    config = configure(options)
    assert (config.backbone, config.inner_steps, config.steps_per_task) == ("label-text", 0, 8)
    results = train(configure({**options, "train_ways": 3, "queries": 1}))
    assert results is not None
    assert results["test"]["inner_steps"] == 5
    with pytest.raises(ConfigError, match="backbone label-text; got text"):
        configure({**options, "backbone": "text", "train_ways": 2})
