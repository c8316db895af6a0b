"""The module tree of learn2learn 0.2.0."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest

from fastmeta.compat import learn2learn as l2l

PACKAGE = "fastmeta.compat.learn2learn"

# Modules of learn2learn 0.2.0 whose names are provided, each with one of them.
PROVIDED = {
    "algorithms.base_learner": "BaseLearner",
    "algorithms.gbml": "GBML",
    "algorithms.maml": "maml_update",
    "algorithms.meta_sgd": "MetaSGD",
    "data.meta_dataset": "UnionMetaDataset",
    "data.task_dataset": "DataDescription",
    "data.transforms": "FusedNWaysKShots",
    "data.utils": "partition_task",
    "nn.misc": "Scale",
    "optim.parameter_update": "ParameterUpdate",
    "optim.transforms.metacurvature_transform": "MetaCurvatureTransform",
    "optim.transforms.module_transform": "ReshapedTransform",
    "optim.update_rules": "DifferentiableSGD",
    "optim.update_rules.differentiable_sgd": "DifferentiableSGD",
    "utils": "clone_module",
    "vision.benchmarks": "list_tasksets",
    "vision.datasets.cifarfs": "CIFARFS",
    "vision.datasets.fc100": "FC100",
    "vision.datasets.full_omniglot": "FullOmniglot",
    "vision.datasets.mini_imagenet": "MiniImagenet",
    "vision.models.cnn4": "LinearBlock",
    "vision.transforms": "RandomClassRotation",
}
# All other modules, each with a pattern of the advice in its error.
MISSING = {
    "algorithms.lightning": r"MAML, or train a fastmeta\.MetaLearner",
    "algorithms.lightning.lightning_anil": r"fastmeta\.lightning\.LightningLearner",
    "algorithms.lightning.lightning_episodic_module": "write the loop with MAML",
    "algorithms.lightning.lightning_maml": "write the loop with MAML",
    "algorithms.lightning.lightning_metaoptnet": "write the loop with MAML",
    "algorithms.lightning.lightning_protonet": "write the loop with MAML",
    "data.samplers": "iterate over the Taskset",
    "gym": "Gymnasium",
    "gym.async_vec_env": "Gymnasium",
    "gym.envs": "Gymnasium",
    "gym.envs.meta_env": "Gymnasium",
    "gym.envs.metaworld": "Gymnasium",
    "gym.envs.metaworld.metaworld": "Gymnasium",
    "gym.envs.mujoco": "Gymnasium",
    "gym.envs.mujoco.ant_direction": "Gymnasium",
    "gym.envs.particles.particles_2d": "Gymnasium",
    "gym.envs.subproc_vec_env": "Gymnasium",
    "nn.kroneckers": r"two nn\.Linear",
    "nn.metalayers": "parametrize",
    "nn.metalayers.metamodule": "parametrize",
    "nn.metalayers.parameter_transform": "parametrize",
    "nn.metaoptnet": "in your own loop",
    "nn.protonet": "in your own loop",
    "optim.learnable_optimizer": "ParameterUpdate",
    "optim.transforms.kronecker_transform": "your module",
    "optim.transforms.transform_dictionary": "your module",
    "text": "load_clinc150",
    "text.datasets": "load_clinc150",
    "text.datasets.news_classification": "load_clinc150",
    "utils.lightning": r"fastmeta\.lightning",
    "vision.benchmarks.cifarfs_benchmark": "get_tasksets",
    "vision.benchmarks.fc100_benchmark": "get_tasksets",
    "vision.benchmarks.mini_imagenet_benchmark": "get_tasksets",
    "vision.benchmarks.omniglot_benchmark": "get_tasksets",
    "vision.benchmarks.tiered_imagenet_benchmark": r"data\.MetaDataset",
    "vision.datasets.cu_birds200": r"data\.MetaDataset",
    "vision.datasets.describable_textures": r"data\.MetaDataset",
    "vision.datasets.fgvc_aircraft": r"data\.MetaDataset",
    "vision.datasets.fgvc_fungi": r"data\.MetaDataset",
    "vision.datasets.quickdraw": r"data\.MetaDataset",
    "vision.datasets.tiered_imagenet": r"data\.MetaDataset",
    "vision.datasets.vgg_flowers": r"data\.MetaDataset",
    "vision.models.resnet12": r"fastmeta\.models\.ResNet12",
    "vision.models.wrn28": r"your own nn\.Module",
}


@pytest.mark.parametrize("module", PROVIDED)
def test_provided_modules(module: str) -> None:
    name = PROVIDED[module]
    parent, _, last = f"{PACKAGE}.{module}".rpartition(".")
    space: dict[str, Any] = {}
    exec(f"import {parent}.{last}", space)
    exec(f"from {parent}.{last} import {name}", space)
    exec(f"from {parent} import {last}", space)
    assert getattr(space[last], name) is space[name]
    exec(f"from {parent}.{last} import *", starred := {})
    assert name not in space[last].__dict__.get("__all__", [name]) or starred[name] is space[name]
    # No alias makes a second copy of what it holds.
    assert getattr(importlib.import_module(space[name].__module__), name) is space[name]


def test_provided_modules_need_no_import_of_their_own() -> None:
    names = [f"l2l.{module}.{name}" for module, name in PROVIDED.items()]
    code = "\n".join([f"import {PACKAGE} as l2l", *names])
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", MISSING)
def test_missing_modules(module: str) -> None:
    advice = MISSING[module]
    parent, _, last = f"{PACKAGE}.{module}".rpartition(".")
    with pytest.raises(ModuleNotFoundError, match=advice) as caught:
        exec(f"import {parent}.{last}")
    assert f"{PACKAGE}.{module}".startswith(str(caught.value.name))
    for statement in (
        f"from {parent} import {last}",
        f"from {parent}.{last} import anything",
        f"import {PACKAGE} as l2l; l2l.{module}",
    ):
        with pytest.raises(ImportError, match=advice):
            exec(statement)


@pytest.mark.parametrize(
    ("module", "name", "advice"),
    [
        (f"{PACKAGE}.algorithms", "LightningMAML", "MetaLearner"),
        (f"{PACKAGE}.optim", "KroneckerTransform", "your module"),
        (f"{PACKAGE}.optim.transforms", "TransformDictionary", "your module"),
        (f"{PACKAGE}.utils", "flatten_config", r"dataclasses\.asdict"),
        (f"{PACKAGE}.vision.benchmarks", "omniglot_tasksets", "get_tasksets"),
        (f"{PACKAGE}.vision.models", "ResNet12", r"fastmeta\.models\.ResNet12"),
        (f"{PACKAGE}.vision.models.cnn4", "WRN28", r"your own nn\.Module"),
        (PACKAGE, "clone_distribution", "cloned module"),
        ("fastmeta.compat.higher", "patch", r"higher\.monkeypatch"),
        ("fastmeta.compat.higher", "register_optim", "SGD, Adam or AdamW"),
        ("fastmeta.compat.higher.optim", "DifferentiableRprop", "SGD, Adam or AdamW"),
    ],
)
def test_missing_names(module: str, name: str, advice: str) -> None:
    with pytest.raises(ImportError, match=rf"has no {name}: .*{advice}"):
        exec(f"from {module} import {name}")
    with pytest.raises(ImportError, match=rf"has no {name}: .*{advice}"):
        getattr(importlib.import_module(module), name)


def test_other_names_are_absent() -> None:
    assert not hasattr(l2l, "absent")
    assert not hasattr(l2l.nn, "absent")
    assert not hasattr(l2l.nn.misc, "__file__")  # which would make inspect take it for nn.py
    with pytest.raises(ImportError, match="cannot import name 'absent'"):
        exec(f"from {PACKAGE}.vision.models.cnn4 import absent")
    with pytest.raises(ModuleNotFoundError, match=rf"No module named '{PACKAGE}\.absent'"):
        exec(f"import {PACKAGE}.absent")
    assert importlib.util.find_spec(f"{PACKAGE}.nn.absent") is None
