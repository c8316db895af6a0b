"""Configuration of a training run."""

from fastmeta.train.config.files import read_config
from fastmeta.train.config.schema import TrainConfig, configure

__all__ = ["TrainConfig", "configure", "read_config"]
