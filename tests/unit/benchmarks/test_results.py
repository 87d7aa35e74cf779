"""Committed results say when, how and on what they were measured, and no path of the machine."""

import json
import re
import sys
from datetime import datetime
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from benchmarks import machine

RESULTS = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_can_be_repeated(path: Path) -> None:
    result = json.loads(path.read_text())
    datetime.fromisoformat(result["date"])
    assert result["command"].startswith(("python -m benchmarks.", "make "))
    assert not [word for word in result["command"].split() if re.match(r"(.*=)?(/|\.\.)", word)]
    assert result["machine"]["cpu"]


def test_a_command_is_noted_without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--out", "/a/b.json", "--in=../c/d.json", "--fast"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("benchmarks.x", None))
    assert machine.command() == "python -m benchmarks.x --out b.json --in=d.json --fast"
