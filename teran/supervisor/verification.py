"""Has engines checked, on the GPU they are served on, that could not be run where they were built.

By a process of its own: what a check takes of the GPU is free again when it ends.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from teran.errors import ServingError
from teran.supervisor.process import dying_with_parent

_COMMAND = (sys.executable, "-m", "teran_client.cli", "verify")


def verify(repository: Path, say: Callable[[str], None], is_stopping: Callable[[], bool]) -> None:
    """Run `teran verify`, which is quick where it has been done on this GPU.

    Args:
        repository: a published one.
        say: gets what the command says.
        is_stopping: asked from time to time, and waits a little; ends the check where it is true.

    Raises:
        ServingError: the engines can't be run here, or differ too much from PyTorch.
    """
    command = dying_with_parent([*_COMMAND, repository])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            while True:
                try:
                    said = process.communicate(timeout=0.1)[0].splitlines()
                    break
                except subprocess.TimeoutExpired:
                    if is_stopping():
                        return
        finally:
            process.kill()
    for line in said:
        say(line)
    if process.returncode:
        reason = said[-1].removeprefix("error: ") if said else "it gave no reason"
        raise ServingError(f"the engines were checked: {reason}")
