"""Requests to galleries, as they reach the service from Triton."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from teran.contract import pack_texts
from teran.errors import GalleryUnreachableError, TeranError, TeranInputError, TeranOverloadedError
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.gallery import EmbeddedGallery
from teran.gallery.item import Item
from teran.gallery.protocol.request import Arrays, Request
from teran.gallery.protocol.service import GalleryService
from teran.gallery.search.query import Query
from teran.runtime.settings import RequestLimits
from tests.unit.gallery.small import DIM, fill, item, opened, unit

Answer = Arrays | TeranError


@pytest.fixture
def galleries(tmp_path: Path) -> Iterator[EmbeddedCatalog]:
    with closing(opened(tmp_path / "root")) as made:
        fill(made, [item(f"i{i}", i, text="x" * 1000) for i in range(8)])
        yield made


def asked(service: GalleryService, *requests: tuple[dict[str, Any], Arrays]) -> list[Answer]:
    """What requests that come together are answered."""
    answers: dict[int, Answer] = {}
    done = [Event() for _ in requests]

    def respond(i: int, answer: Answer) -> None:
        answers[i] = answer
        done[i].set()

    service.handle(
        [
            Request(parameters, inputs, lambda answer, i=i: respond(i, answer))  # type: ignore[misc]
            for i, (parameters, inputs) in enumerate(requests)
        ]
    )
    assert all(one.wait(30) for one in done)
    return [answers[i] for i in range(len(requests))]


def search(rows: int = 4, count: int = 1) -> tuple[dict[str, Any], Arrays]:
    queries = np.stack([unit(i, rows) for i in range(count)])
    return {"k": 5}, {"embeddings": queries}


def like(*names: str) -> tuple[dict[str, Any], Arrays]:
    records = pack_texts([json.dumps({"id": name}).encode() for name in names])
    return {"operation": "like"}, {"record": records}


def test_a_cluster_that_is_away_is_asked_once(
    galleries: EmbeddedCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def away(*_: object) -> None:
        calls.append(1)
        raise GalleryUnreachableError("the cluster does not answer")

    monkeypatch.setattr(EmbeddedGallery, "search", away)
    answers = asked(GalleryService(galleries, DIM), *[search() for _ in range(64)])
    assert len(calls) == 1
    assert all(isinstance(one, GalleryUnreachableError) for one in answers)


def test_queries_have_so_many_rows_at_most(galleries: EmbeddedCatalog) -> None:
    service = GalleryService(galleries, DIM, limits=RequestLimits(max_query_rows=40))
    fits, too_many, of_items, one_item = asked(
        service, search(20, 2), search(20, 3), like("i0", "i1"), like("i0")
    )
    assert isinstance(fits, dict)
    for refused in (too_many, of_items):
        assert isinstance(refused, TeranInputError)
        assert "at most 40 are accepted in a request" in str(refused)
    assert isinstance(one_item, dict)


def test_word_pieces_have_so_many_bytes_at_most(galleries: EmbeddedCatalog) -> None:
    parameters, inputs = search(4)
    fits, too_long = (inputs | {"tokens": np.ones((1, 4, n), np.uint8)} for n in (1024, 1025))
    record = pack_texts([json.dumps({"id": "sentence"}).encode()])
    good, *refused = asked(
        GalleryService(galleries, DIM),
        (parameters, fits),
        (parameters, too_long),
        ({"operation": "upsert", "gallery": "sentences"}, too_long | {"record": record}),
    )
    assert isinstance(good, dict)
    assert [str(one) for one in refused] == [
        "tokens are 1025 bytes long; at most 1024 are accepted"
    ] * 2


def test_answers_that_are_too_large_together_are_refused_for_now(
    galleries: EmbeddedCatalog,
) -> None:
    """All of an execution are in memory before Triton sends any of them."""
    service = GalleryService(galleries, DIM, limits=RequestLimits(max_answer_bytes=12_000))
    answers = asked(service, *[search() for _ in range(6)])
    assert [type(one) for one in answers] == [dict, dict, *[TeranOverloadedError] * 4]
    assert isinstance(asked(service, search())[0], dict)


def test_answers_of_several_galleries_are_bounded_together(galleries: EmbeddedCatalog) -> None:
    for name in "abcd":
        fill(galleries, [item(f"i{i}", i, text="x" * 1000) for i in range(8)], name)
    service = GalleryService(galleries, DIM, limits=RequestLimits(max_answer_bytes=12_000))
    queries = [(search()[0] | {"gallery": name}, search()[1]) for name in "abcd"]
    assert [type(one) for one in asked(service, *queries)] == [
        dict,
        dict,
        *[TeranOverloadedError] * 2,
    ]


def test_no_more_records_are_read_than_an_answer_holds(
    galleries: EmbeddedCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(galleries, [item(f"i{i}", i, text="x" * 1000) for i in range(200)])
    read: list[int] = []
    items = EmbeddedGallery.items

    def counted(gallery: EmbeddedGallery, points: Sequence[UUID]) -> dict[UUID, Item]:
        read.append(len(points))
        return items(gallery, points)

    monkeypatch.setattr(EmbeddedGallery, "items", counted)
    parameters, inputs = search()
    service = GalleryService(galleries, DIM, limits=RequestLimits(max_answer_bytes=12_000))
    (answer,) = asked(service, (parameters | {"k": 1000}, inputs))
    assert isinstance(answer, TeranInputError)
    assert sum(read) < 100


def test_a_filter_that_makes_no_sense_fails_alone(
    galleries: EmbeddedCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are searched for together, as if it were not there."""
    together: list[int] = []
    searched = EmbeddedGallery.search

    def counted(gallery: EmbeddedGallery, queries: Sequence[Query], where: Any) -> Any:
        together.append(len(queries))
        return searched(gallery, queries, where)

    monkeypatch.setattr(EmbeddedGallery, "search", counted)
    parameters, inputs = search()
    wrong = parameters | {"where": json.dumps({"year": {"about": 2000}})}
    *good, refused = asked(
        GalleryService(galleries, DIM), *[search() for _ in range(5)], (wrong, inputs)
    )
    assert isinstance(refused, TeranInputError)
    assert all(isinstance(one, dict) for one in good)
    assert together == [5]


def test_a_job_is_known_by_a_number_that_no_other_process_gives(
    galleries: EmbeddedCatalog, tmp_path: Path
) -> None:
    def started(catalog: EmbeddedCatalog) -> int:
        (answer,) = asked(GalleryService(catalog, DIM), ({"operation": "snapshot"}, {}))
        assert isinstance(answer, dict)
        return int(json.loads(answer["report"].flat[0])["job"])

    first = started(galleries)
    with closing(opened(tmp_path / "again")) as again:
        fill(again, [item("a", 1)])
        assert started(again) != first
        (answer,) = asked(GalleryService(again, DIM), ({"operation": "job", "job": first}, {}))
    assert isinstance(answer, TeranInputError)
    assert f"no job {first}" in str(answer)


def test_writes_that_wait_are_bounded(
    galleries: EmbeddedCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Event()
    monkeypatch.setattr(EmbeddedGallery, "write", lambda *_: hold.wait(30))
    gallery = galleries.get("default")
    waiting = [galleries.writer.write(gallery, [item("a", 1)] * 100) for _ in range(11)]
    record = pack_texts([json.dumps({"id": "a"}).encode()])
    embeddings = search()[1]["embeddings"]
    try:
        with pytest.raises(TeranOverloadedError, match="too many writes are waiting"):
            galleries.writer.write(gallery, [item("a", 1)])
        answers = asked(
            GalleryService(galleries, DIM),
            ({"gallery": "new"}, {"embeddings": embeddings, "record": record}),
            ({"operation": "alias", "alias": "a"}, {}),
            ({"operation": "drop", "gallery": "none"}, {}),
            ({"operation": "snapshot"}, {}),
        )
        assert [type(one) for one in answers] == [TeranOverloadedError] * 4
    finally:
        hold.set()
    for one in waiting:
        one.result(30)
    galleries.writer.write(gallery, [item("a", 1)]).result(30)
