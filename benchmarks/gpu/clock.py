"""Times work on a device, and what the device can do at best."""

import time
from collections.abc import Callable
from statistics import median

import torch


class Clock:
    """Medians of synchronised times."""

    def __init__(self, device: torch.device, repeat: int) -> None:
        self.device, self._repeat = device, repeat

    def __call__(self, call: Callable[[], object], repeat: int | None = None) -> float:
        """Seconds of one call, after three warm-ups."""
        for _ in range(3):
            call()
        self._wait()
        times = []
        for _ in range(repeat or self._repeat):
            start = time.perf_counter()
            call()
            self._wait()
            times.append(time.perf_counter() - start)
        return median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def ceilings(clock: Clock, *, small: bool) -> dict[str, float]:
    """Bytes a second of a large copy (read and written), and operations a second of a matmul."""
    device, found = clock.device, {}
    block = torch.randint(0, 255, (1 << (26 if small else 31),), dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    found["copy_bytes_per_second"] = 2 * block.nbytes / clock(lambda: target.copy_(block))
    size = 1024 if small else 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        found[f"{name}_operations_per_second"] = 2 * size**3 / clock(lambda: a @ b)  # noqa: B023
    tiny = torch.zeros(1, device=device)
    found["launch_seconds"] = clock(lambda: tiny.add_(1), repeat=200)
    return found
