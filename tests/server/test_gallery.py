"""Indexing and searching through gRPC, against the alignment's own scores."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from teran_client import (
    AsyncTeranClient,
    Entry,
    TeranClient,
    TeranInputError,
    TeranTimeoutError,
    TeranUnavailableError,
)

from teran.cli.background import BackgroundServer, background_server
from teran.supervisor.health import fetch
from teran.supervisor.host import free_ports
from tests.data import captions, images
from tests.server.test_supervision import model_process, wait_for

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


@pytest.mark.parametrize("key", ["a" * 3_000, "a" * 30_000, "狗" * 3_000, "🐕" * 3_000])
def test_a_long_mistake_is_told_in_short(client: TeranClient, gallery: str, key: str) -> None:
    with pytest.raises(TeranInputError, match=f"where.*{key[:50]}") as refusal:
        client.search("a dog", gallery=gallery, where={key: {"near": 1}})
    assert len(str(refusal.value)) < 800


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


def test_its_process_does_without_torch(
    server: BackgroundServer, client: TeranClient, gallery: str
) -> None:
    """It would take 200 MB of memory and a second and a half at every start."""
    client.search("a dog", gallery=gallery)
    process = model_process(server, "gallery")
    libraries = {Path(mapped.path).name for mapped in process.memory_maps()}
    assert any(name.startswith("_multiarray_umath") for name in libraries)  # numpy's
    assert not [name for name in libraries if "torch" in name]


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


@contextmanager
def empty_cluster(port: int) -> Iterator[None]:
    """What answers Qdrant's clients that there is nothing: to all calls, with an empty message."""

    class Nothing(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda *_: b"")

    cluster = grpc.server(ThreadPoolExecutor(4), handlers=[Nothing()])
    cluster.add_insecure_port(f"127.0.0.1:{port}")
    cluster.start()
    try:
        yield
    finally:
        cluster.stop(None)


def test_an_absent_cluster_takes_nothing_else_with_it(repository: Path, tmp_path: Path) -> None:
    """Encoders go on, searches are told why at once; once it is there, it is asked again."""
    [port] = free_ports("127.0.0.1", 1)
    flags = ("--gallery-url", f"http://127.0.0.1:{port - 1}", "--check-interval", "0.5")
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
        metrics = server.health_url.replace("/health/ready", "/metrics")
        assert "teran_galleries_unusable 1.0" in fetch(metrics, 5)
        with empty_cluster(port):
            with pytest.raises(TeranInputError, match="no gallery 'default'"):
                client.search("a dog")
            assert wait_for(lambda: "teran_galleries_unusable 0.0" in fetch(metrics, 5))
    assert "restarting" not in (tmp_path / "log").read_text()


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
