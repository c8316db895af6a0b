"""Image datasets, task transforms, benchmarks and networks."""

from fastmeta.compat.learn2learn.vision import benchmarks, datasets, models, transforms

__all__ = ["benchmarks", "datasets", "models", "transforms"]
