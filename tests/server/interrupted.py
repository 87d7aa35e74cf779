"""The command `teran`, whose handlers of signals are interrupted by more of them, step by step."""

import runpy
import signal
import sys
from types import FrameType
from typing import Any

_install = signal.signal
_left = 20


def _interrupt(*_: object) -> None:
    global _left
    if _left:
        _left -= 1
        signal.raise_signal(signal.SIGTERM)


def _install_interrupted(number: int, handler: Any) -> Any:
    if not callable(handler):
        return _install(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        before = sys.getprofile()
        sys.setprofile(_interrupt)
        try:
            handler(number, frame)
        finally:
            sys.setprofile(before)

    return _install(number, handle)


signal.signal = _install_interrupted  # type: ignore[assignment]
runpy.run_module("teran.cli", run_name="__main__")
