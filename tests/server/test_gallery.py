"""Indexing and searching through gRPC, against the alignment's own scores."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from teran_client import (
    AsyncTeranClient,
    Entry,
    TeranClient,
    TeranInputError,
    TeranServerError,
    TeranTimeoutError,
    TeranUnavailableError,
)
from teran_client.protocol import infer_request

from teran.cli.background import BackgroundServer, background_server
from teran.contract import pack_texts
from teran.supervisor.health import fetch
from tests.data import captions, images
from tests.server.test_supervision import model_process

PHOTOS = images(40, seed=7, longest=50)


@pytest.fixture(scope="module")
def gallery(client: TeranClient) -> str:
    entries = [
        Entry(photo, photo.name, uri=f"file:///{i}.jpg", metadata={"n": i, "odd": bool(i % 2)})
        for i, photo in enumerate(PHOTOS)
    ]
    assert client.index(entries, gallery="photos") == [photo.name for photo in PHOTOS]
    return "photos"


def test_search_ranks_as_the_alignment_scores(client: TeranClient, gallery: str) -> None:
    sentences = captions(12, seed=5)
    scores = client.score(PHOTOS, sentences)
    results = client.search(sentences, k=40, gallery=gallery)
    for column, result in enumerate(results):
        assert [hit.score for hit in result] == sorted((hit.score for hit in result), reverse=True)
        for hit in result:
            row = int(hit.id.removeprefix("image-"))
            assert hit.score == pytest.approx(scores[row, column], abs=1e-2)
            assert hit.uri == f"file:///{row}.jpg"
            assert hit.metadata == {"n": row, "odd": bool(row % 2)}
        assert len({hit.id for hit in result}) == result.items == 40


def test_explanations_are_the_best_regions(client: TeranClient, gallery: str) -> None:
    hit = client.search("a dog runs", k=1, gallery=gallery, explain=True).hits[0]
    photo = next(photo for photo in PHOTOS if photo.name == hit.id)
    best = client.match(photo, "a dog runs").best_regions()
    assert [(m["word"], m["region"]) for m in hit.matches] == [(w, r) for w, r, _ in best]
    for match, (_, region, cosine) in zip(hit.matches, best, strict=True):
        assert match["cosine"] == pytest.approx(cosine, abs=2e-3)
        np.testing.assert_allclose(match["box"], photo.boxes[region], atol=1e-3)


def test_filters_thresholds_and_limits(client: TeranClient, gallery: str) -> None:
    odd = client.search("a dog", k=1000, gallery=gallery, where={"odd": True, "n": {"lt": 20}})
    assert {hit.metadata["n"] for hit in odd} == set(range(1, 20, 2))
    everything = client.search("a dog", k=1000, gallery=gallery)
    assert len(everything) == 40
    limit = everything.hits[7].score_per_word
    some = client.search("a dog", k=1000, gallery=gallery, min_score_per_word=limit - 1e-6)
    assert [hit.id for hit in some] == [hit.id for hit in everything.hits[:8]]
    ids = {"n": {"in": list(range(10_000))}}
    assert len(client.search("a dog", k=1000, gallery=gallery, where=ids)) == 40


def test_sentences_are_found_by_images(client: TeranClient) -> None:
    sentences = list(dict.fromkeys(captions(30, seed=6)))
    client.index([Entry(s, f"s{i}") for i, s in enumerate(sentences)], gallery="sentences")
    scores = client.score(PHOTOS[:5], sentences)
    results = client.search(PHOTOS[:5], k=30, gallery="sentences", explain=True)
    for row, result in enumerate(results):
        assert len(result) == len(sentences)
        for hit in result:
            column = int(hit.id[1:])
            assert hit.text == sentences[column]
            assert hit.score == pytest.approx(scores[row, column], abs=1e-2)
            assert all(match["region"] < len(PHOTOS[row]) for match in hit.matches)
    with pytest.raises(TeranInputError, match="holds sentences, not images"):
        client.index(PHOTOS[0], gallery="sentences")


def test_more_like_this_finds_itself_first(client: TeranClient, gallery: str) -> None:
    result = client.search_like("image-3", k=3, gallery=gallery)
    assert result.hits[0].id == "image-3"
    assert result.hits[0].score_per_word == pytest.approx(1, abs=1e-2)


def test_replacing_and_deleting(client: TeranClient) -> None:
    client.index([Entry(PHOTOS[0], "x", metadata={"v": 1}), Entry(PHOTOS[1], "y")], gallery="few")
    client.index(Entry(PHOTOS[2], "x", metadata={"v": 2}), gallery="few")
    assert client.gallery_info("few")["items"] == 2
    hits = {hit.id: hit for hit in client.search("a dog", gallery="few")}
    assert hits["x"].metadata == {"v": 2}
    assert hits["x"].score == pytest.approx(client.score([PHOTOS[2]], ["a dog"])[0, 0], abs=2e-3)
    assert client.delete(["x", "unknown"], gallery="few") == 1
    assert client.known(["x", "y"], gallery="few") == [False, True]
    assert client.delete("y", gallery="few") == 1
    assert client.search("a dog", gallery="few").hits == []
    client.drop_gallery("few")
    with pytest.raises(TeranInputError, match="there is no gallery 'few'"):
        client.search("a dog", gallery="few")


def test_snapshot_restore_and_alias(client: TeranClient, gallery: str) -> None:
    expected = [hit.id for hit in client.search("a dog", gallery=gallery)]
    path = client.snapshot(gallery)
    assert client.restore(Path(path).name, "again")["items"] == 40
    client.set_alias("live", "again")
    assert [hit.id for hit in client.search("a dog", gallery="live")] == expected


def test_clients_at_once_get_their_own_results(server: BackgroundServer, gallery: str) -> None:
    sentences = captions(24, seed=8)
    with TeranClient(server.url) as one:
        alone = [[hit.id for hit in one.search(s, k=5, gallery=gallery)] for s in sentences]
    together: dict[int, list[str]] = {}

    def run(worker: int) -> None:
        with TeranClient(server.url) as client:
            for i in range(worker, len(sentences), 6):
                result = client.search(sentences[i], k=5, gallery=gallery)
                together[i] = [hit.id for hit in result]
                client.index(Entry(PHOTOS[i % 40], f"busy-{i}"), gallery="busy")

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(sentences))] == alone


def test_asynchronous_client_has_the_same_verbs(
    server: BackgroundServer, client: TeranClient, gallery: str
) -> None:
    async def run() -> None:
        async with AsyncTeranClient(server.url) as other:
            assert await other.is_ready()
            stored = [one async for one in await other.index(iter(PHOTOS[:5]), gallery="async")]
            assert stored == [photo.name for photo in PHOTOS[:5]]
            found = await other.search("a dog runs", gallery=gallery)
            assert found.hits == client.search("a dog runs", gallery=gallery).hits
            assert (await other.gallery_info("async"))["items"] == 5
            assert await other.delete("image-0", gallery="async") == 1
            np.testing.assert_allclose(
                await other.score(PHOTOS[:3], ["a dog", "runs"]),
                client.score(PHOTOS[:3], ["a dog", "runs"]),
                atol=1e-5,
            )
            match = await other.match(PHOTOS[0], "a dog")
            assert match.score == pytest.approx(client.match(PHOTOS[0], "a dog").score, abs=1e-5)
            ranked = await other.rank("a dog", PHOTOS[:5], k=2)
            assert ranked == client.rank("a dog", PHOTOS[:5], k=2)
            words = [one async for one in await other.encode_captions(iter(["a dog", "runs"]))]
            assert [one.caption for one in words] == ["a dog", "runs"]
            assert (await other.profile("a dog", calls=2)).calls == 2

    asyncio.run(run())


def embeddings(rows: int = 3, dim: int = 16) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((1, rows, dim)).astype(np.float32)
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    return values


def record(text: bytes) -> np.ndarray:
    return pack_texts([text])


Parameters = dict[str, bool | int | float | str]
PHOTOS_ONLY: Parameters = {"gallery": "photos"}
WRONG: list[tuple[dict[str, np.ndarray], Parameters, str]] = [
    ({"embeddings": embeddings()}, {"k": 0, "gallery": "photos"}, "k is 0, expected 1 to 1000"),
    ({"embeddings": embeddings()}, {"k": 1001, "gallery": "photos"}, "k is 1001"),
    ({"embeddings": embeddings()}, {"k": "many", "gallery": "photos"}, "k is 'many', expected int"),
    ({"embeddings": embeddings()}, {"gallery": "absent"}, "there is no gallery 'absent'"),
    ({"embeddings": embeddings()}, {"operation": "dance"}, "operation 'dance'"),
    ({"embeddings": embeddings()}, {"where": "{", "gallery": "photos"}, "where is not JSON"),
    ({"embeddings": embeddings()}, {"where": "[1]", "gallery": "photos"}, "expected an object"),
    ({"embeddings": embeddings() * 2}, {"gallery": "photos"}, "must have norm 1"),
    ({"embeddings": embeddings() * np.nan}, {"gallery": "photos"}, "NaN or infinite"),
    ({"embeddings": embeddings() * 0}, {"gallery": "photos"}, "no row that takes part"),
    ({"record": record(b"{}")}, {"operation": "search", "gallery": "photos"}, "no embeddings"),
    ({"record": record(b'{"id": "none"}')}, {"operation": "like", "gallery": "photos"}, "no item"),
    ({"record": record(b'{"id": "none"}')}, {"operation": "get", "gallery": "photos"}, "no item"),
    ({"record": record(b"{}")}, {"operation": "job", "job": 999}, "there is no job 999"),
    *(
        ({"embeddings": embeddings(), "record": record(data)}, PHOTOS_ONLY, reason)
        for data, reason in (
            (b"nonsense", "record is not JSON"),
            (b"[1]", "expected an object"),
            (b"{}", "id is None"),
            (b'{"id": 3}', "id is 3"),
            (b'{"id": ""}', "id is ''"),
            (b'{"id": "a\\u0000b"}', "holds a line break"),
            (b'{"id": "' + b"x" * 10_000 + b'"}', "has 10000 bytes; at most 1024"),
            (b'{"id": "a", "colour": 1}', "colour"),
            (b'{"id": "a", "uri": 1}', "uri is 1"),
            (b'{"id": "a", "metadata": [1]}', "metadata is"),
            (b'{"id": "a", "metadata": {"x": NaN}}', "NaN is no JSON number"),
            (b'{"id": "a", "metadata": {"x": 1e999}}', "a number that is too large"),
            (b'{"id": "a", "uri": "\\ud800"}', "record's uri is"),
            (b'{"id": "a", "metadata": {"a.b": 1}}', "metadata key 'a.b'"),
            (b'{"id": "a", "metadata": {"x": ' + b"9" * 30 + b"}}", "more than 64 bits"),
            (b'{"id": "a", "metadata": ' + b'{"x":' * 40 + b"1" + b"}" * 40 + b"}", "nested"),
            (b'{"id": "a", "text": "' + b"x" * 70_000 + b'"}', "at most 65536"),
            (b'{"id": "\xff"}', "not JSON"),
        )
    ),
]


def test_its_process_does_without_torch(
    server: BackgroundServer, client: TeranClient, gallery: str
) -> None:
    """It would take 200 MB of memory and a second and a half at every start."""
    client.search("a dog", gallery=gallery)
    process = model_process(server, "gallery")
    libraries = {Path(mapped.path).name for mapped in process.memory_maps()}
    assert any(name.startswith("_multiarray_umath") for name in libraries)  # numpy's
    assert not [name for name in libraries if "torch" in name]


@pytest.fixture(scope="module")
def stub(server: BackgroundServer) -> Iterator[object]:
    from teran.supervisor.canary import connect

    host, port = server.url.split(":")
    channel, made = connect(host, int(port))
    yield made
    channel.close()


@pytest.mark.parametrize(("inputs", "parameters", "reason"), WRONG)
def test_wrong_requests_are_told_why(
    stub: object,
    client: TeranClient,
    gallery: str,
    inputs: dict[str, np.ndarray],
    parameters: Parameters,
    reason: str,
) -> None:
    import grpc

    request = infer_request("gallery", inputs, ["report"], parameters)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=20)  # type: ignore[attr-defined]
    assert reason in str(caught.value)
    assert client.gallery_info(gallery)["items"] == 40


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c: c.search("", gallery="photos"), "query is empty"),
        (lambda c: c.search("a dog", k=0), "k is 0"),
        (lambda c: c.search(["a dog", PHOTOS[0]]), "one kind at a time"),
        (lambda c: c.search({"a dog"}), "expected a list"),
        (lambda c: c.search("a dog", where={"x": object()}), "where:"),
        (lambda c: c.index(Entry(PHOTOS[0], "")), "expected a string that is not empty"),
        (lambda c: c.index([3]), "item 0 is int"),
        (lambda c: c.index(Entry(PHOTOS[0], "a", metadata={"x": {1}})), "metadata"),
        (lambda c: c.index(Entry(PHOTOS[0], "a", uri="x" * (1 << 20))), "at most 1048576"),
    ],
)
def test_wrong_input_is_refused_before_it_is_sent(  # type: ignore[no-untyped-def]
    client: TeranClient, call, reason: str
) -> None:
    with pytest.raises(TeranInputError, match=reason):
        call(client)


def test_galleries_in_a_cluster(repository: Path, tmp_path: Path) -> None:
    """The whole way, on Qdrant's own in-process implementation of a cluster."""
    flags = ("--gallery-url", ":memory:", "--gallery", str(tmp_path / "unused"))
    with (
        background_server(repository, *flags, log=tmp_path / "log") as server,
        TeranClient(server.url, timeout=30) as client,
    ):
        entries = [Entry(photo, photo.name, metadata={"n": i}) for i, photo in enumerate(PHOTOS)]
        client.index(entries)
        sentences = captions(4, seed=5)
        scores = client.score(PHOTOS, sentences)
        for column, result in enumerate(client.search(sentences, k=5, exact=True)):
            expected = np.sort(scores[:, column])[::-1][:5]
            np.testing.assert_allclose([hit.score for hit in result], expected, atol=1e-2)
        hit = client.search("a dog", k=1, where={"n": 3}, explain=True).hits[0]
        assert (hit.id, hit.metadata) == (PHOTOS[3].name, {"n": 3})
        assert [match["word"] for match in hit.matches] == ["a", "dog"]
        assert client.search_like(PHOTOS[5].name, k=1).hits[0].id == PHOTOS[5].name
        assert client.delete([PHOTOS[0].name, "none"]) == 1
        client.set_alias("live", "default")
        assert client.gallery_info("live")["items"] == 39
        with pytest.raises(TeranInputError, match="takes its own snapshots"):
            client.snapshot()
    assert not (tmp_path / "unused").exists()


def test_an_absent_cluster_takes_nothing_else_with_it(repository: Path, tmp_path: Path) -> None:
    """Encoders go on, searches are told why at once, and the server says so in its metrics."""
    flags = ("--gallery-url", "http://127.0.0.1:1", "--check-interval", "0.5")
    with (
        background_server(repository, *flags, log=tmp_path / "log") as server,
        TeranClient(server.url, timeout=30) as client,
    ):
        ends = time.monotonic() + 8  # canaries and reports come many times meanwhile
        while time.monotonic() < ends:
            with pytest.raises((TeranUnavailableError, TeranTimeoutError)):
                client.search("a dog", timeout=1)
            assert client.encode_captions("a dog").tokens
            assert server.is_ready()
        with pytest.raises(TeranUnavailableError, match="the Qdrant cluster failed"):
            client.search("a dog", timeout=10)
        metrics = fetch(server.health_url.replace("/health/ready", "/metrics"), 5)
        assert "teran_galleries_unusable 1.0" in metrics
    assert "restarting" not in (tmp_path / "log").read_text()


def test_words_in_an_id_decide_nothing(client: TeranClient, gallery: str) -> None:
    for name in ("StubHub-17", "Stub process 'x_0_0' is not healthy", "teran:busy: shared memory"):
        started = time.monotonic()
        with pytest.raises(TeranInputError, match="no item"):
            client.search_like(name, gallery=gallery)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["\u3000wide", "\U0001f469\u200d\U0001f680", "[/photo]", "é/1"])
def test_ids_of_any_script(client: TeranClient, name: str) -> None:
    client.index(Entry(PHOTOS[0], name), gallery="ids")
    assert name in {hit.id for hit in client.search_like(name, gallery="ids")}


def test_ids_of_several_lines_are_refused_before_they_are_sent(client: TeranClient) -> None:
    for name in ("a\nb", "a\u2028b", "\x1b[31m"):
        with pytest.raises(TeranInputError, match=r"item.*id .* holds a line break or another"):
            client.index(Entry(PHOTOS[0], name), gallery="ids")


def test_an_answer_that_is_too_long_is_refused_alone(repository: Path, tmp_path: Path) -> None:
    flags = ("--max-answer-bytes", "3000", "--max-caption-bytes", "100", "--max-rows", "40")
    with (
        background_server(
            repository, *flags, "--gallery", str(tmp_path / "g"), log=tmp_path / "log"
        ) as server,
        TeranClient(server.url, timeout=20) as client,
    ):
        small = [one for one in PHOTOS if len(one) <= 40][:20]
        client.index([Entry(one, one.name, metadata={"text": "x" * 500}) for one in small])
        assert len(client.search("a dog", k=3)) == 3
        with pytest.raises(TeranInputError, match="more than 3000 bytes of records"):
            client.search("a dog", k=20)
        with pytest.raises(TeranInputError, match="caption has 400 bytes; at most 100"):
            client.encode_captions("dog " * 100)
        large = next(one for one in PHOTOS if len(one) > 40)
        with pytest.raises(TeranInputError, match=r"embeddings have \d+ rows; at most 40"):
            client.index(large, gallery="big")


def test_errors_are_server_errors_or_input_errors(client: TeranClient) -> None:
    with pytest.raises(TeranInputError, match="no snapshot"):
        client.restore("absent.tar", "fresh")
    with pytest.raises((TeranInputError, TeranServerError), match="gallery name"):
        client.index(PHOTOS[0], gallery="Not A Name")


def test_a_write_that_waits_holds_up_no_search(
    server: BackgroundServer, client: TeranClient, gallery: str
) -> None:
    waiting = model_process(server, "stored")
    written: list[object] = []

    def write() -> None:
        with TeranClient(server.url, timeout=60) as other:
            written.append(other.index(Entry(PHOTOS[0], "late"), gallery="late"))
            written.append(other.delete("late", gallery="late"))

    thread = threading.Thread(target=write)
    waiting.suspend()
    try:
        thread.start()
        for _ in range(20):
            assert client.search("a dog runs", k=1, gallery=gallery, timeout=2).hits
        assert not written
    finally:
        waiting.resume()
    thread.join(30)
    assert written == ["late", 1]


def test_writes_survive_the_death_of_who_waits_for_them(
    server: BackgroundServer, client: TeranClient
) -> None:
    for model in ("stored", "gallery"):
        done: list[str] = []

        def write(done: list[str] = done) -> None:
            with TeranClient(server.url, timeout=60, batch_size=4) as other:
                done += other.index(
                    (Entry(one, f"i{n}") for n, one in enumerate(PHOTOS)), gallery="d"
                )

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.05)
        model_process(server, model).kill()
        thread.join(60)
        assert done == [f"i{n}" for n in range(len(PHOTOS))]
        assert all(client.known(done, gallery="d"))
        client.drop_gallery("d")
