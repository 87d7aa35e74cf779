"""Runs a server until it is told to stop, and brings back models whose process has died.

Triton 2.51 neither restarts a model's killed process nor takes back its ready flag. The supervisor
watches the processes, asks every model for a canary inference from time to time, and reloads those
that fail; if that does not help, or the server itself has crashed, it restarts the server.
"""

import dataclasses
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Set
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import grpc
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import service_pb2

from teran.contract import ADMIN_KEY_HEADER
from teran.errors import ServingError
from teran.runtime.load import LoadFile
from teran.secrets import leave_key, read_key
from teran.supervisor import host, installation, process
from teran.supervisor.canary import Canary, Health, connect, read_canaries
from teran.supervisor.exposition import Exposition
from teran.supervisor.health import HealthServer, HealthState
from teran.supervisor.load import LoadMonitor
from teran.supervisor.logs import ServerLog
from teran.supervisor.process import TritonProcess
from teran.supervisor.repository import check_repository
from teran.supervisor.settings import ServeSettings
from teran.supervisor.sweep import sweep
from teran.supervisor.verification import verify

_LOAD_FILE = "load"
_POLL = 0.2
"""Seconds between looks at the processes."""
_SLOW_LIMIT = 3
"""So many canaries in a row unanswered, with nothing else answered either, and a model is dead."""
_PATIENCE = 10.0
"""Seconds in which a model that is loaded must have a process."""
_RESTARTS, _RESTART_WINDOW = 3, 300.0
"""More restarts within so many seconds mean that they do not help."""


class Supervisor:
    """Serves one repository."""

    def __init__(self, settings: ServeSettings) -> None:
        """Check what can be checked before anything is started.

        Raises:
            ServingError: no server, a broken repository, or a port in use.
        """
        # The link may move to a newer repository meanwhile; restarts stay with this one.
        self._verified = check_repository(settings.repository)
        self._published = settings.repository.absolute()
        settings = dataclasses.replace(
            settings, repository=settings.repository.resolve(), gallery=settings.gallery_directory()
        )
        settings.require_safety()
        self._admin_key = read_key("TERAN_ADMIN_KEY", settings.admin_key_file) or token_hex(32)
        settings.security_arguments(self._admin_key)
        settings.trace_arguments()
        self._installation = installation.find()
        self._canaries = read_canaries(settings.repository)
        self.settings = _resolve_ports(settings)
        self._log = ServerLog(settings.log_format, verbose=settings.verbose)
        self._report = self._log.say
        self._state = HealthState()
        self._signals = 0
        self._kill: Callable[[], None] = lambda: None
        self._canary_timeout = 2 * settings.check_interval
        self._reloads = 0
        self._slow: dict[str, int] = {}
        self._watched: set[str] = set()

    def run(self) -> int:
        """Serve until a signal comes or the server ends; returns the server's exit status.

        Raises:
            ServingError: the server did not become ready, or has too little shared memory.
        """
        for path in host.remove_leftovers():
            self._report(f"removed {path}, left behind by a server that was killed")
        host.require_shared_memory()
        host.allow_open_files()
        if not installation.has_preload():
            self._report(
                "warning: built without what mends Triton's faults; see `teran doctor`", "WARNING"
            )
        if self.settings.is_exposed:
            self._report(
                f"warning: {self.settings.host} can be reached from outside, without TLS or a "
                "write key",
                "WARNING",
            )
        s = self.settings
        with ExitStack() as closing:
            key_file = leave_key(s.grpc_port, self._admin_key)
            closing.callback(key_file.unlink, missing_ok=True)
            prefix = host.RUNTIME_NAME.format(pid=os.getpid())
            recorded = closing.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
            self._recorded = Path(recorded)
            self._metrics = Exposition(self._recorded, self._state, s.repository, self._published)
            LoadFile.create(self._recorded / _LOAD_FILE)
            monitor = LoadMonitor(
                f"http://{s.host}:{s.metrics_port}/metrics",
                LoadFile(self._recorded / _LOAD_FILE),
                s.max_wait,
            )
            closing.callback(monitor.close)
            health = HealthServer(
                s.host, s.health_port, self._state, self._metrics.text, self._report
            )
            closing.callback(health.close)
            for number in (signal.SIGINT, signal.SIGTERM):
                closing.callback(signal.signal, number, signal.signal(number, self._on_signal))
            closing.callback(self._state.set_serving, False)
            if not self._verified:
                verify(s.repository, self._report, self._pause)
            return self._serve()

    def _on_signal(self, _number: int, _frame: object) -> None:
        """Stop gracefully; a second signal stops at once.

        It may come at any moment, in the middle of another too, so it takes no locks: an `Event`
        that it set could wait for itself.
        """
        self._signals += 1
        if self._signals > 1:
            self._kill()

    @property
    def _stopping(self) -> bool:
        return self._signals > 0

    def _pause(self) -> bool:
        """Sleep for a moment, and say whether to stop."""
        time.sleep(_POLL)
        return self._stopping

    def _serve(self) -> int:
        restarts: deque[float] = deque(maxlen=_RESTARTS)
        while True:
            recorded = self._recorded if self.settings.metrics else None
            self._process = TritonProcess(
                self.settings,
                self._installation,
                self._log,
                recorded,
                self._recorded / _LOAD_FILE,
                self._admin_key,
            )
            self._kill = self._process.kill
            s = self.settings
            try:
                # Not before: a process with threads of gRPC's may not fork safely.
                channel, self._stub = connect(s.host, s.grpc_port, s.tls_certificate, s.tls_name)
                with channel:
                    self._wait_until_ready()
                    if not self._stopping:
                        self._report(
                            f"ready: grpc {s.host}:{s.grpc_port}, "
                            + (f"http {s.http_host}:{s.http_port}, " if s.http else "")
                            + f"metrics {s.host}:{s.metrics_port}/metrics, "
                            f"health {s.host}:{s.health_port}/health/ready"
                        )
                    served = not self._stopping
                    healthy = self._watch()
            except BaseException:
                self._process.stop()
                raise
            self._state.set_serving(False)
            if self._stopping:
                if served:
                    self._drain()
                self._report("stopping")
            status = self._process.stop()
            if self._stopping:
                return 0 if self._process.was_killed else max(status, 0)
            if healthy:
                return status
            if len(restarts) == _RESTARTS and time.monotonic() - restarts[0] < _RESTART_WINDOW:
                raise ServingError(
                    f"the server or its models kept failing after {_RESTARTS} restarts"
                )
            restarts.append(time.monotonic())
            self._metrics.restarts.inc()
            self._report("restarting the server", "WARNING")

    def _drain(self) -> None:
        """Serve on for those who have not learnt yet that this server goes; a signal ends that."""
        if self.settings.drain:
            self._report(f"not ready any more, stopping in {self.settings.drain:g} s")
        ends = time.monotonic() + self.settings.drain
        while time.monotonic() < ends and self._signals < 2 and self._process.status is None:
            time.sleep(_POLL)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.settings.startup_timeout
        while not self._stopping:
            if self._process.status is not None:
                self._process.wait()
                reasons = self._process.failures() or ["it gave no reason; try --verbose"]
                raise ServingError(f"the server did not start: {'; '.join(dict.fromkeys(reasons))}")
            try:
                if self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1).ready:
                    self._state.set_serving(True)
                    for canary in self._canaries:
                        self._state.set_model(canary.model, True)
                    return
            except grpc.RpcError:
                pass
            if time.monotonic() > deadline:
                raise ServingError(
                    f"the server was not ready after {self.settings.startup_timeout:.0f} s; "
                    "give it more with --startup-timeout"
                )
            self._pause()

    def _watch(self) -> bool:
        """Look after the models. False: they need a new server. True: it is over."""
        models, checked = self._process.model_processes(), time.monotonic()
        self._watched = set(models.values())  # none, where Triton's own backends run the models
        while not self._pause():
            if self._process.status is not None:
                said = "; ".join(self._process.last_words())
                self._report(
                    f"the server ended with status {self._process.status}"
                    + (f": {said}" if said else ""),
                    "ERROR",
                )
                return self._process.status == 0  # whoever stopped it in good order meant it
            dead = self._watched - {
                model for one, model in models.items() if not process.has_died(one)
            }
            if dead or time.monotonic() - checked > self.settings.check_interval:
                for model in dead:
                    self._report(f"the process of {model} has died", "WARNING")
                    self._state.set_model(model, False)
                if not self._check_models(dead):
                    return False
                sweep(self._stub, self._admin_key, self._canary_timeout, self._report)
                models, checked = self._process.model_processes(), time.monotonic()
        return True

    def _check_models(self, dead: Set[str]) -> bool:
        """Reload the dead models and those that fail their canary; False where it does not help."""
        for canary in self._canaries:
            if self._stopping or self._process.status is not None:
                return True
            ready = Health.DEAD if canary.model in dead else self._answers(canary)
            self._state.set_model(canary.model, ready is Health.ALIVE)
            if ready is not Health.DEAD:
                continue
            self._process.has_casualties = True
            self._metrics.reloads.labels(canary.model).inc()
            self._report(f"{canary.model} does not answer; loading it again", "WARNING")
            self._process.kill_model(canary.model)  # it may hang, and hold what the next one needs
            if not self._reload(canary.model):
                return self._stopping or self._process.status is not None
            health = canary.run(self._stub, self._canary_timeout)
            if health is not Health.ALIVE:
                self._report(f"{canary.model} is {health.value} after it was loaded again", "ERROR")
                return False
            self._state.set_model(canary.model, True)
            self._report(f"{canary.model} is back")
        return True

    def _reload(self, model: str) -> bool:
        """Load a model anew, in a new process.

        Triton skips an unchanged model, and takes over the instances, dead ones included, of one
        whose config is the same. So it gets the config with something new in it.
        """
        limit, request = self.settings.startup_timeout, service_pb2.ModelConfigRequest(name=model)
        try:
            config = self._stub.ModelConfig(request, timeout=self._canary_timeout).config
            load = service_pb2.RepositoryModelLoadRequest(model_name=model)
            self._reloads += 1
            config.parameters["reload"].string_value = str(self._reloads)
            load.parameters["config"].string_param = MessageToJson(
                config, preserving_proto_field_name=True
            )
            loading = self._stub.RepositoryModelLoad.future(
                load, timeout=limit, metadata=[(ADMIN_KEY_HEADER, self._admin_key)]
            )
            alive = time.monotonic()
            while not loading.done():
                if model in self._process.model_processes().values() or model not in self._watched:
                    alive = time.monotonic()
                died = time.monotonic() - alive > _PATIENCE
                if died:
                    self._report(f"{model} can't be loaded: its new process has died", "ERROR")
                if died or self._pause():
                    loading.cancel()
                    return False
            loading.result()
        except grpc.RpcError as error:
            self._report(f"{model} can't be loaded: {error.details()}", "ERROR")
            return False
        return True

    def _answers(self, canary: Canary) -> Health:
        """What a canary says of its model, seen together with the ones before.

        A model that leaves it waiting is alive where it executed other requests meanwhile, slow
        where it did nothing, and dead after several slow canaries in a row.
        """
        before = self._executions(canary.model)
        health = canary.run(self._stub, self._canary_timeout)
        if health is Health.SLOW and self._executions(canary.model) > before:
            health = Health.ALIVE
        slow = self._slow.get(canary.model, 0) + 1 if health is Health.SLOW else 0
        self._slow[canary.model] = slow % _SLOW_LIMIT
        return Health.DEAD if slow == _SLOW_LIMIT else health

    def _executions(self, model: str) -> int:
        """How often a model has been run; 0 where the server does not say."""
        request = service_pb2.ModelStatisticsRequest(name=model)
        try:
            statistics = self._stub.ModelStatistics(request, timeout=self._canary_timeout)
        except grpc.RpcError:
            return 0
        return sum(entry.execution_count for entry in statistics.model_stats)


def _resolve_ports(settings: ServeSettings) -> ServeSettings:
    """Replace ports of 0 by free ones, and check the others."""
    ports = {name: getattr(settings, name) for name in settings.ports}
    named: dict[int, str] = {}
    for name, port in ports.items():
        flag = f"--{name.replace('_', '-')}"
        if port in named:
            raise ServingError(f"{named[port]} and {flag} are both {port}; change one of them")
        if port:
            host.require_free(settings.host, port, flag)
            named[port] = flag
    for name in (name for name, port in ports.items() if not port):
        [ports[name]] = host.free_ports(settings.host, 1, besides=ports.values())
    return dataclasses.replace(settings, **ports)
