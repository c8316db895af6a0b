"""The command line, `fastmeta`."""

from fastmeta.cli.main import main

__all__ = ["main"]
