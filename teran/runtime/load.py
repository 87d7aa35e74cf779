"""How much work waits for every model, in a file that the supervisor and the models map.

The supervisor measures what the server has done, and the models that admit requests count what they
let in. Together that tells how long a new request would wait, without asking anybody.
"""

import mmap
import os
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from hashlib import blake2b
from pathlib import Path

from teran.runtime.environment import LOAD_FILE_VARIABLE

MODELS = (
    "tokenizer",
    "textual_encoder",
    "visual_encoder",
    "alignment",
    "gallery",
    "photo",
    "proposal_network",
    "proposals",
    "region_network",
    "regions",
)
"""Those that have a queue."""
UNBATCHED = ("alignment",)
"""Of those: models that do not batch. Triton counts a request of theirs as one item."""
COUNTING = (*MODELS, "admission")
"""Those that let requests in. Each has counters of its own, without a lock."""
FEW = 0.5
"""Items that may always be ahead, the second half of one: how fast a model is, only work tells."""
_OWN_ID = re.compile(r"[0-9a-f]{16}")
_DEADLINES = 4096
"""Requests whose deadlines are remembered."""
_PLACES = 8
"""Of them, where that of one request may be: in the one whose deadline came first."""
_RECORD = struct.Struct("d8dd")  # begins and ends with its version: torn reads are noticed
_VERSION, _FIELDS = struct.Struct("d"), struct.Struct("8d")
_COUNTERS = len(MODELS) * _RECORD.size
_REFUSALS = _COUNTERS + 8 * len(MODELS) * len(COUNTING)
_READS = 1000
"""Of a torn record, until it is taken as it is: its writer may have been killed meanwhile."""
_REFUSAL = struct.Struct("2d")
_HELD = _REFUSALS + len(MODELS) * _REFUSAL.size
_SLOTS = _HELD + 8 * len(MODELS)
_SLOT = struct.Struct("dd")
_SIZE = _SLOTS + _DEADLINES * _SLOT.size


@dataclass(frozen=True)
class Load:
    """What the supervisor last saw of a model."""

    at: float = 0.0
    """When, by the monotonic clock."""
    items: float = 0.0
    """That were waiting or being computed, and are not in excess."""
    admitted: float = 0.0
    """Items ever let in by then."""
    seconds: float = 0.0
    """For an item, at full work; 0 where that is not known yet."""
    excess: float = 0.0
    """Requests in its queue that came past the admission and have waited too long already."""
    number: float = 0.0
    """Of this measurement."""
    share: float = 1.0
    """Of the items that were let in lately: those that came. Anybody may call the model that lets
    them in, and go no further."""
    latency: float = 0.0
    """Seconds that an item takes by itself; more than `seconds` where several are done at once."""


@dataclass(frozen=True)
class Refused:
    """Items that have reached a model and were not done, ever. To Triton all of them are done."""

    failed: float = 0.0
    """For any reason."""
    shed: float = 0.0
    """Because too many were waiting, which takes no time."""


class LoadFile:
    """The file, mapped; or as good as an empty one where nobody supervises."""

    def __init__(self, path: Path | None = None, counting: str | None = None) -> None:
        """Map the file, by default the one that the environment names.

        Args:
            path: the file, which `create` has made.
            counting: which of the models that count this is.
        """
        given = path or os.environ.get(LOAD_FILE_VARIABLE)
        if given:
            with Path(given).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), _SIZE)
        else:
            self._map = mmap.mmap(-1, _SIZE)
        self._counters = memoryview(self._map)[_COUNTERS:_REFUSALS].cast("d")
        self._own = len(MODELS) * COUNTING.index(counting) if counting else None
        self._shed: dict[str, tuple[float, float]] = {}

    @staticmethod
    def create(path: Path) -> None:
        """Make an empty file."""
        path.write_bytes(bytes(_SIZE))

    def write(self, model: str, load: Load) -> None:
        """Say what was seen of a model; only the supervisor does."""
        start = MODELS.index(model) * _RECORD.size
        end = start + _RECORD.size - _VERSION.size
        version = _VERSION.unpack_from(self._map, start)[0] + 1
        # The end first, as it is read last: a reader in between finds two versions.
        _VERSION.pack_into(self._map, end, version)
        _FIELDS.pack_into(self._map, start + _VERSION.size, *astuple(load))
        _VERSION.pack_into(self._map, start, version)

    def read(self, model: str) -> Load:
        """What was last seen of a model."""
        start = MODELS.index(model) * _RECORD.size
        for _ in range(_READS):
            version, *values, again = _RECORD.unpack_from(self._map, start)
            if version == again:
                break
        return Load(*values)

    def admitted(self, model: str) -> float:
        """Items ever let in for a model."""
        return sum(self._counters[MODELS.index(model) :: len(MODELS)])

    def admit(self, model: str, items: int) -> None:
        """Count items that are let in; fewer than none, if they do not come after all."""
        assert self._own is not None
        self._counters[self._own + MODELS.index(model)] += items

    def refused(self, model: str) -> Refused:
        """What has reached a model and was not done."""
        return Refused(*_REFUSAL.unpack_from(self._map, _refusal_place(model)))

    def refuse(self, model: str, *, failed: float = 0.0, shed: float = 0.0) -> None:
        """Count items that have reached a model and are not done; only that model does."""
        before = self.refused(model)
        values = before.failed + failed, before.shed + shed
        _REFUSAL.pack_into(self._map, _refusal_place(model), *values)

    def hold(self, model: str, items: float) -> None:
        """Say how many items a model has at hand just now; only that model does."""
        struct.pack_into("d", self._map, _HELD + 8 * MODELS.index(model), items)

    def held(self, model: str) -> float:
        """Items that a model has at hand."""
        items: float = struct.unpack_from("d", self._map, _HELD + 8 * MODELS.index(model))[0]
        return items

    def wait(self, model: str, few: float = FEW) -> float:
        """Seconds that what comes now would take longer than by itself; none behind a few items."""
        load = self.read(model)
        if not load.seconds:
            return 0.0
        come = load.share * (self.admitted(model) - load.admitted)
        ahead = load.items + come - (time.monotonic() - load.at) / load.seconds
        at_once = max(0.0, load.latency - load.seconds)
        return max(0.0, ahead * load.seconds - at_once) if ahead > few else 0.0

    def takes(self, model: str, items: int) -> float:
        """Seconds that a model works on a request of so many items."""
        return self.read(model).seconds * (1 if model in UNBATCHED else items)

    def take_excess(self, model: str, most: int) -> int:
        """How many of the requests that a model has at hand it should refuse, the oldest first."""
        load = self.read(model)
        number, left = self._shed.get(model, (0.0, 0.0))
        if number != load.number:
            left = load.excess
        taken = min(most, int(left))
        self._shed[model] = load.number, left - taken
        return taken

    def set_deadline(self, request: str, seconds: float) -> None:
        """Remember that nobody waits for a request any longer than that.

        Only of ids as our client makes them: others may be used again, or be none.
        """
        if not _OWN_ID.fullmatch(request):
            return
        key = _key(request)
        _, place = min((deadline, place) for place, _, deadline in self._places(key))
        _SLOT.pack_into(self._map, place, key, time.monotonic() + seconds)

    def is_over(self, request: str) -> bool:
        """Whether the deadline of a request has passed, if there was one."""
        if not _OWN_ID.fullmatch(request):
            return False
        key = _key(request)
        deadlines = [deadline for _, stored, deadline in self._places(key) if stored == key]
        return bool(deadlines) and max(deadlines) < time.monotonic()

    def _places(self, key: int) -> Iterator[tuple[int, float, float]]:
        """Where a request's deadline may be, whose is there, and when it is."""
        first = _SLOTS + key % (_DEADLINES // _PLACES) * _PLACES * _SLOT.size
        for place in range(first, first + _PLACES * _SLOT.size, _SLOT.size):
            yield place, *_SLOT.unpack_from(self._map, place)


def _refusal_place(model: str) -> int:
    return _REFUSALS + MODELS.index(model) * _REFUSAL.size


def _key(request: str) -> int:
    """By what a request's deadline is known: few enough bits for a float to hold."""
    return int.from_bytes(blake2b(request.encode(), digest_size=6).digest())
