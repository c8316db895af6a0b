"""Which command is meant, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastmeta.cli.parser import COMMANDS, UsageError, module_of, parse


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, fastmeta\n"
        "from fastmeta.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert 'MAML' in dir(fastmeta) and fastmeta.MAML.__name__ == 'MAML'\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, summary in COMMANDS.items():
        assert name in done.stdout
        assert summary.split()[0] in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_module_with_help(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(module_of(command).run)
    with pytest.raises(SystemExit, match="0"):
        parse([command, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: fastmeta {command}")
    assert COMMANDS[command][1:50] in " ".join(printed.split())


def test_a_flag_before_the_command() -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --ways"):
        parse(["--ways", "train"])
