"""The ways to start the command line."""

from __future__ import annotations

import subprocess
import sys

import countvi


def test_the_package_is_a_command_too() -> None:
    command = [sys.executable, "-m", "countvi", "--version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.strip() == f"countvi {countvi.__version__}"
