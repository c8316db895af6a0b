"""The command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fastmeta._errors import UserError
from fastmeta.cli.parser import module_of, parse
from fastmeta.registry import PluginError

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0, 2 for errors that the user can fix, 130 after Ctrl-C.
    """
    try:
        given = parse(arguments)
        status: int = module_of(given.command).run(given)
        return status
    except (UserError, PluginError) as error:
        print(f"fastmeta: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USER_ERROR
    except KeyboardInterrupt:
        print("fastmeta: aborted", file=sys.stderr)
        return INTERRUPTED
