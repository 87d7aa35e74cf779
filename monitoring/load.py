"""A mixed load on a server: every kind of request, over and over, from a thread of its own."""

import threading
from collections.abc import Sequence

from teran_client import Entry, ImageRegions, TeranClient, TeranError


class MixedLoad:
    """Indexes, searches, matches and deletes until it is closed."""

    def __init__(
        self, url: str, images: Sequence[ImageRegions], captions: Sequence[str], batch: int = 12
    ) -> None:
        """Start.

        Args:
            url: the server's, host:port.
            images: what to index and match.
            captions: what to index, search for and match.
            batch: images and captions to index at once.
        """
        self._url, self._images, self._captions = url, images, captions
        self._batch, self._stop = batch, threading.Event()
        self.rounds = 0
        self.error: TeranError | None = None
        """The last request that failed."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Stop after the round under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with TeranClient(self._url, timeout=20, retries=0) as client:
            i = 0
            while not self._stop.is_set():
                try:
                    self.round(client, i)
                    self.rounds += 1
                except TeranError as error:
                    self.error = error
                i += 1

    def round(self, client: TeranClient, i: int) -> None:
        """Send one request of every kind."""
        first = i * self._batch % len(self._images)
        pictures = self._images[first : first + self._batch]
        said = [self._captions[(i + n) % len(self._captions)] for n in range(self._batch)]
        client.index([Entry(one, f"i{first + n}") for n, one in enumerate(pictures)])
        client.index([Entry(one, f"c{first + n}") for n, one in enumerate(said)], gallery="said")
        for caption in said[:4]:
            client.search(caption)
        client.search(said[0], min_score_per_word=2)  # nothing is as good
        client.match(pictures[0], said[1])
        client.delete(f"i{first}")
