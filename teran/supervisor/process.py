"""One `tritonserver` process: started with the right files around it, stopped without leftovers."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import psutil

from teran.commandline import to_environment
from teran.runtime import environment as variables
from teran.runtime.settings import GallerySettings
from teran.supervisor.host import RUNTIME_NAME, SHM, SHM_NAME
from teran.supervisor.installation import TritonInstallation
from teran.supervisor.logs import ServerLog
from teran.supervisor.settings import ServeSettings

_DIE_WITH_PARENT = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)  # it is gone already
os.execvp(sys.argv[2], sys.argv[2:])
"""
_TICKETS = "tickets"
_ARGUMENTS = 45
"""Place in /proc/PID/stat, after the name, of where the command line begins; its end is next."""
_TRITON_LINE = re.compile(r"[IWE]\d{4} ")
_USUAL_LINE = re.compile(r'[IW]\d{4} |\{"level"|[|+]')  # and of its tables
_LAST_WORDS = 30
"""Lines in which a server that crashes says why."""
_STUB_NAME = "triton_python_backend_stub"
_INSTANCE = re.compile(r"([a-z]\w*)_\d+_\d+")
_CASUALTY_PATIENCE = 5.0
"""Seconds a server may take to stop that waits for a model process which is gone."""


def dying_with_parent(command: Sequence[str | Path]) -> list[str]:
    """A command that the kernel stops when its parent is gone, even if that was killed.

    It asks for that itself, before it begins: code between fork and exec may hang or crash, in a
    process that has threads.
    """
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *map(str, command)]


class TritonProcess:
    """A running server, its log, and the model processes it has started."""

    def __init__(
        self,
        settings: ServeSettings,
        installation: TritonInstallation,
        log: ServerLog,
        metrics: Path | None = None,
        load: Path | None = None,
        admin_key: str | None = None,
    ) -> None:
        """Start the server; it is not ready yet.

        Args:
            settings: of the server.
            installation: what to run.
            log: where its output goes.
            metrics: directory in which its models record.
            load: file that tells its models how much work waits.
            admin_key: what administrative calls must bring; by default one nobody knows.
        """
        self._settings, self._log, self._metrics, self._load = settings, log, metrics, load
        self._admin_key = admin_key or token_hex(32)
        self.has_casualties = False
        """Whether a model process has died. Triton then can't stop by itself."""
        self.was_killed = False
        self._region = SHM_NAME.format(pid=os.getpid())
        self._runtime = tempfile.TemporaryDirectory(prefix=RUNTIME_NAME.format(pid=os.getpid()))
        backends = Path(self._runtime.name)
        installation.lay_out_backends(backends)
        self._tail: deque[str] = deque(maxlen=400)
        self._process = subprocess.Popen(
            dying_with_parent([installation.binary, *self._arguments(backends)]),
            env=self._environment(installation),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=backends,  # the stub imports from where it is started
            start_new_session=True,  # a terminal's Ctrl-C reaches it through us, once
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _arguments(self, backends: Path) -> list[str]:
        s = self._settings
        return [
            # The link may move to a newer repository while we run; this server keeps its own.
            f"--model-repository={s.repository.resolve()}",
            f"--backend-directory={backends}",
            f"--grpc-address={s.host}",
            f"--grpc-port={s.grpc_port}",
            *(
                (f"--http-address={s.http_host}", f"--http-port={s.http_port}")
                if s.http
                else ("--allow-http=false",)
            ),
            f"--metrics-address={s.host}",
            f"--metrics-port={s.metrics_port}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--disable-auto-complete-config",
            # Clients look whether it is there while they wait for long requests.
            "--grpc-http2-min-recv-ping-interval-without-data=10000",
            f"--exit-timeout-secs={int(s.shutdown_timeout)}",
            f"--backend-config=python,shm-region-prefix-name={self._region}",
            *s.security_arguments(self._admin_key),
            *s.trace_arguments(),
            *s.arguments,
        ]

    def _environment(self, installation: TritonInstallation) -> dict[str, str]:
        environment = installation.environment()
        for model, threads in self._settings.thread_shares().items():
            variable = variables.THREADS_VARIABLE.format(model=model.upper())
            environment.setdefault(variable, str(threads))
        environment.pop("TERAN_ADMIN_KEY", None)
        s = self._settings
        here = replace(
            s,
            gallery=s.gallery_directory(),
            write_key_file=_absolute(s.write_key_file),
            gallery_api_key_file=_absolute(s.gallery_api_key_file),
        )
        environment |= to_environment(here, GallerySettings)
        if self._metrics:
            environment[variables.METRICS_DIRECTORY_VARIABLE] = str(self._metrics)
        if self._load:
            environment[variables.LOAD_FILE_VARIABLE] = str(self._load)
        # In the directory where all are started: a socket's whole path may be too long for one.
        environment[variables.TICKETS_VARIABLE] = _TICKETS
        environment[variables.LOG_LEVEL_VARIABLE] = self._settings.log_level
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("TOKENIZERS_PARALLELISM", "false")
        return environment

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        hidden = False
        for line in self._process.stdout:
            if not hidden and _TRITON_LINE.match(line):  # it has read its command line
                hidden = True
                self._hide_key()
            self._tail.append(line.rstrip())
            with suppress(Exception):  # Triton waits for whoever does not read what it writes
                self._log.write_on(line.rstrip())

    def _hide_key(self) -> None:
        """Overwrite the key on the command line, the only way in which Triton takes one."""
        try:
            found = overwrite_argument(self._process.pid, self._admin_key)
            problem = None if found == 1 + self._settings.http else f"it was found {found} times"
        except OSError as error:
            problem = str(error)
        if problem and self.status is None:
            self._log.say(
                f"users of this host may read the admin key on the command line: {problem}",
                "WARNING",
            )

    @property
    def status(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def failures(self) -> list[str]:
        """What the log says went wrong with loading models, one sentence each."""
        failed = (re.search(r"failed to load '(\w+)' version \d+: (.*)", x) for x in self._tail)
        # A Python model's error ends in its traceback.
        reasons = [(match[1], match[2].split("\\n\\nAt:")[0]) for match in failed if match]
        found = [f"{model}: {reason}" for model, reason in reasons]
        if not found:
            errors = [line for line in self._tail if line.startswith(("E", "error"))]
            found = [re.sub(r"^E\d+ [\d:.]+ \d+ \S+\] ", "", line).strip('"') for line in errors]
        return found

    def last_words(self) -> list[str]:
        """What the server wrote before it ended, where that is not of its usual log."""
        self._reader.join(timeout=1)
        words = list(self._tail)[-_LAST_WORDS:]
        return [line for line in words if line and not _USUAL_LINE.match(line)]

    def model_processes(self) -> dict[psutil.Process, str]:
        """The live processes that run Python models, and which. Looks at the whole host."""
        models = {}
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                if _is_alive(child, _STUB_NAME) and (name := _model_of(child)):
                    models[child] = name
        return models

    def kill_model(self, name: str) -> None:
        """End the processes of a model."""
        for process, model in self.model_processes().items():
            if model == name:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def send(self, number: int) -> None:
        """Send a signal to the server, if it still runs."""
        if self.status is None:
            self._process.send_signal(number)

    def stop(self) -> int:
        """Stop the server, by force where it doesn't stop by itself, and return its status."""
        self.send(signal.SIGTERM)
        patience = self._settings.shutdown_timeout + 5
        try:
            self._process.wait(
                min(patience, _CASUALTY_PATIENCE) if self.has_casualties else patience
            )
        except subprocess.TimeoutExpired:
            self.kill()
        return self.wait()

    def kill(self) -> None:
        """Stop the server at once."""
        if self.status is None:
            self.was_killed = True
            self.send(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end of the server, and remove what it left behind."""
        status = self._process.wait()
        orphans = [one for one in psutil.process_iter() if _has_region(one, self._region)]
        for process in orphans:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        end = time.monotonic() + _CASUALTY_PATIENCE  # the next server needs their files
        while not all(map(has_died, orphans)) and time.monotonic() < end:
            time.sleep(0.01)
        self._reader.join(timeout=5)
        self._runtime.cleanup()
        for path in SHM.glob(f"{self._region}*"):
            path.unlink(missing_ok=True)
        return status


def overwrite_argument(pid: int, secret: str) -> int:
    """Replace a value in the command line that the kernel shows of a process; tells how often.

    Raises:
        OSError: the process is gone, or its memory may not be written.
    """
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    start, end = int(numbers[_ARGUMENTS]), int(numbers[_ARGUMENTS + 1])
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        line, secret_bytes = memory.read(end - start), secret.encode()
        places = [
            found.start(1) for found in re.finditer(b"=(%b)\\0" % re.escape(secret_bytes), line)
        ]
        for place in places:
            memory.seek(start + place)
            memory.write(b"x" * len(secret_bytes))
    return len(places)


def _absolute(path: Path | None) -> Path | None:
    """A path that means the same to a process started elsewhere."""
    return path and path.absolute()


def _model_of(process: psutil.Process) -> str | None:
    """The model a stub runs, from the name of its instance: <model>_<group>_<number>."""
    with suppress(psutil.NoSuchProcess):
        for argument in process.cmdline():
            if match := _INSTANCE.fullmatch(argument):
                return match[1]
    return None


def _has_region(process: psutil.Process, prefix: str) -> bool:
    """Whether a process runs a model whose shared memory's name begins so."""
    with suppress(psutil.NoSuchProcess):
        return _is_alive(process, _STUB_NAME) and any(
            argument.startswith(prefix) for argument in process.cmdline()
        )
    return False


def has_died(process: psutil.Process) -> bool:
    """Whether a process is gone, or waits only for its parent to notice."""
    return not _is_alive(process)


def _is_alive(process: psutil.Process, name: str = "") -> bool:
    try:
        # Linux keeps the first 15 characters of a name.
        return process.name().startswith(name[:15]) and (
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
