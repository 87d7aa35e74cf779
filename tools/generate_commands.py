"""Writes `docs/commands.md`: every command and option, from the definitions that make them."""

import re
from pathlib import Path

from teran_client.cli import whole_app

TARGET = Path(__file__).parents[1] / "docs" / "commands.md"
_HEADER = """# The teran command

Every command, option and environment variable (`env`), written by `make generate` from the code.
"""


def generate() -> str:
    """The page's text."""
    usage = whole_app().generate_docs("markdown", usage_name="teran")
    # A program that runs as `python -m` leaves its own flag in each line of usage.
    usage = re.sub(r"^(teran .*?) -m [\w.]+", r"\1", usage, flags=re.MULTILINE)
    return _HEADER + usage[usage.index("\n**Commands**") :].rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
