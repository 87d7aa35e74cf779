"""A recorded fake of TensorRT's Python module, for what TensorRT-RTX's real one can't be asked.

Versions 10 and 11 side by side, flags that RTX has not, and a layer without a kernel. It builds
nothing, and has the names the published bindings have (see `bindings.json`).
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class _Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class FakeTensorRt:
    """Stands for the module `tensorrt`."""

    def __init__(self, *, version: str = "10.15.1", build_errors: Sequence[str] = ()) -> None:
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        self.build_errors = build_errors
        flag = "STRONGLY_TYPED" if version.startswith("10.") else "OTHER"
        members = {
            "NetworkDefinitionCreationFlag": {flag: 1},
            "MemoryPoolType": {"WORKSPACE": 0},
            "HardwareCompatibilityLevel": {"AMPERE_PLUS": 1},
            "BuilderFlag": {"VERSION_COMPATIBLE": 13},
        }
        for name, values in members.items():
            setattr(self, name, IntEnum(name, values))
        fake = self

        class Logger:
            Severity = _Severity

        class Monitor:
            pass

        self.ILogger, self.IProgressMonitor = Logger, Monitor

        class Profile:
            def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
                fake.calls.append(("set_shape", name, *shapes))

        class Cache:
            def __init__(self, data: bytes) -> None:
                self.data = data

            def serialize(self) -> bytes:
                return self.data + b"+measured"

        class Config:
            builder_optimization_level = 3
            hardware_compatibility_level = None
            progress_monitor: Any = None

            def set_memory_pool_limit(self, pool: Any, size: int) -> None:
                fake.calls.append(("set_memory_pool_limit", pool.name, size))

            def set_flag(self, flag: Any) -> None:
                fake.calls.append(("set_flag", flag.name))

            def create_timing_cache(self, data: bytes) -> Cache:
                return Cache(data)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                self.cache = cache
                fake.calls.append(("set_timing_cache", cache.data))
                return True

            def get_timing_cache(self) -> Cache:
                return self.cache

            def add_optimization_profile(self, profile: Profile) -> int:
                assert isinstance(profile, Profile)
                fake.calls.append(("add_optimization_profile",))
                return len([c for c in fake.calls if c[0] == "add_optimization_profile"]) - 1

        class Builder:
            def __init__(self, logger: Any) -> None:
                fake.logger = logger

            def create_network(self, flags: int) -> str:
                fake.calls.append(("create_network", flags))
                return "network"

            def create_builder_config(self) -> Config:
                config = Config()
                fake.config = config
                return config

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: str, config: Config) -> bytes | None:
                assert network == "network"
                monitor = config.progress_monitor
                monitor.phase_start("Building engine", None, 40)
                for step in range(40):
                    assert monitor.step_complete("Building engine", step)
                monitor.phase_finish("Building engine")
                for message in fake.build_errors:
                    fake.logger.log(Logger.Severity.ERROR, message)
                return None if fake.build_errors else b"a plan"

        class Parser:
            def __init__(self, network: str, logger: Any) -> None:
                assert (network, logger) == ("network", fake.logger)

            def parse_from_file(self, path: str) -> bool:
                fake.calls.append(("parse_from_file", path))
                return True

        self.Builder, self.OnnxParser = Builder, Parser
        self.logger: Any = None
        self.config: Any = None
