"""`fastmeta predict`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmeta.backend import keep_freed_memory
from fastmeta.cli.arguments import add_options, given_options, options
from fastmeta.train import predict_run
from fastmeta.train._atomic_files import write_json
from fastmeta.train.errors import require

PICTURE_NAME = "predictions.png"
_OPTIONS = ("data_root", "eval_inner_steps", "co_test", "device", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "run", type=Path, help="folder of a run, a checkpoint, or a file of 'fastmeta export'"
    )
    parser.add_argument(
        "examples",
        type=Path,
        help="labelled examples: a folder with a folder of images per class, or a CSV file",
    )
    parser.add_argument(
        "inputs", type=Path, nargs="+", help="images, or folders of images; or CSV or text files"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help=f"picture of images and predictions (default: {PICTURE_NAME} beside the model)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all probabilities")
    add_options(parser, options(*_OPTIONS), of_run=True)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    require("matplotlib", "The picture of the predictions")
    keep_freed_memory()
    found = predict_run(given.run, given.examples, given.inputs, given_options(given))
    print(found)
    if given.json:
        write_json(given.json, found.to_dict())
    if found.images is not None:
        folder = given.run if given.run.is_dir() else given.run.parent
        picture = given.picture or folder / PICTURE_NAME
        found.draw(picture)
        print(f"picture: {picture}")
    return 0
