"""Photos in: what the served detector finds, what is made of it, and what is refused."""

import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from teran_client import Entry, TeranClient, TeranInputError
from teran_export import ExportOptions, export
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from teran.cli.background import BackgroundServer, background_server
from teran.detector import DetectorConfig, RegionDetector, Regions
from teran.detector.decode import decode
from teran.detector.random import random_detector
from tests.conftest import TINY

CONFIG = DetectorConfig(50, 4, TINY.feature_dim // 8, 4, 8, 10, 5, 96, 160, 300, 40, 6, 10)
SIZES = ((200, 120), (97, 300), (160, 160), (64, 500), (640, 481))
CAPTION = "a dog runs"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def detector() -> RegionDetector:
    return random_detector(CONFIG, seed=1)


@pytest.fixture(scope="module")
def repository(
    detector: RegionDetector, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    detector.save_pretrained(folder / "detector")
    options = ExportOptions(
        tiny_bundle, folder / "repository", "openvino", "fp32", detector=folder / "detector"
    )
    return export(options).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of all formats and several sizes, one of them turned, one in a folder below."""
    path = tmp_path_factory.mktemp("pictures")
    (path / "below").mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2019:07:21 10:11:12"
    for i, (size, kind) in enumerate(zip(SIZES, ("jpg", "png", "webp", "jpg", "png"), strict=True)):
        turned: dict[str, Any] = {"exif": exif} if i == 3 else {}
        where = path / "below" if i == 4 else path
        picture(*size, seed=i).save(where / f"{i}.{kind}", **turned)
    return path


def photos(folder: Path) -> list[Path]:
    return sorted(one for one in folder.rglob("*") if one.is_file())


def found_here(detector: RegionDetector, photo: Path) -> tuple[Regions, tuple[int, int]]:
    pixels = decode(photo.read_bytes())
    return detector.detect([pixels])[0], (pixels.shape[1], pixels.shape[0])


def test_regions_are_those_that_the_detector_finds(
    detector: RegionDetector, folder: Path, client: TeranClient
) -> None:
    files = photos(folder)
    for file, served in zip(files, client.detect(files), strict=True):
        here, size = found_here(detector, file)
        assert served.size == size
        assert served.regions.features == pytest.approx(here.features, abs=1e-3)
        assert served.regions.boxes * np.tile(size, 2) == pytest.approx(here.boxes, abs=1e-2)
        assert served.confidence == pytest.approx(here.confidence, abs=1e-5)
        assert served.labels.tolist() == here.labels.tolist()
        assert CONFIG.min_regions <= len(served.regions) <= CONFIG.max_regions


def test_photos_of_any_form_at_once(folder: Path, client: TeranClient) -> None:
    """Paths, bytes and pictures, from several callers: each gets what its own photo holds."""
    files = photos(folder)
    expected = [client.encode_images(one.regions) for one in client.detect(files)]
    forms: list[Any] = [*files, *(one.read_bytes() for one in files), Image.open(files[1])]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(client.encode_images, forms))
    for result, wanted in zip(results, [*expected, *expected, expected[1]], strict=True):
        assert result == pytest.approx(wanted, abs=1e-5)
    for result, wanted in zip(client.encode_images(files), expected, strict=True):
        assert result == pytest.approx(wanted, abs=1e-5)


def test_a_few_callers_are_no_overload(repository: Path, folder: Path, tmp_path: Path) -> None:
    """Where a photo takes longer than anything may wait: none is refused, or has to come again."""
    photo = np.frombuffer((folder / "below" / "4.png").read_bytes(), np.uint8)
    tensor = triton.InferInput("photo", (1, photo.size), "UINT8")
    tensor.set_data_from_numpy(photo[None])
    flags = ("--gallery", str(tmp_path / "gallery"), "--max-wait", "0.002")
    with background_server(repository, *flags) as running:

        def call(_: int) -> list[int]:
            with triton.InferenceServerClient(running.url) as connection:
                answers = [connection.infer("detect_regions", [tensor]) for _ in range(20)]
            return [len(answer.as_numpy("boxes")) for answer in answers]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(call, range(8))) == [[1] * 20] * 8


def test_photos_are_indexed_searched_and_matched(folder: Path, client: TeranClient) -> None:
    ids = client.index(folder, gallery="pictures")
    assert ids == ["0.jpg", "1.png", "2.webp", "3.jpg"]
    files = [folder / one for one in ids]
    result = client.search(CAPTION, gallery="pictures", explain=True)
    scores = dict(zip(ids, client.score(files, [CAPTION])[:, 0], strict=True))
    assert {hit.id: hit.score for hit in result} == pytest.approx(scores, abs=1e-2)
    assert result.hits[0].uri == str((folder / result.hits[0].id).absolute())
    match = client.match(str(files[0]), CAPTION)
    regions = client.detect(files[0]).regions
    assert match.score == pytest.approx(client.match(regions, CAPTION).score, abs=1e-4)
    assert match.boxes == pytest.approx(regions.boxes, abs=1e-5)
    client.index(["two men .", "a red ball ."], gallery="said")
    by_photo = client.search(files[0], gallery="said")
    assert [hit.id for hit in by_photo] == [
        hit.id for hit in client.search(regions, gallery="said")
    ]
    assert len(by_photo) == 2
    one = client.index(Entry(files[0].read_bytes(), "the first"), gallery="pictures")
    assert client.known([one, "absent"], gallery="pictures") == [True, False]
    assert [one.name for one in client.rank(CAPTION, files, 2)] == [
        hit.id for hit in result.hits if hit.id in ids
    ][:2]


def test_where_the_time_of_a_photo_goes(folder: Path, client: TeranClient) -> None:
    found = client.profile(CAPTION, folder / "0.jpg", calls=2)
    networks = {"photo", "proposal_network", "region_network", "visual_encoder", "textual_encoder"}
    assert networks <= set(found.models)
    assert all(compute > 0 for _, compute in found.models.values())


REFUSED = {
    "no photo": (b"nothing of the kind", "not a photo in JPEG, PNG, WEBP"),
    "a GIF": (encoded(picture(40, 40), "GIF"), "not a photo in JPEG, PNG, WEBP"),
    "cut off": (encoded(picture(200, 100), "JPEG")[:1500], "the photo is damaged"),
    "tiny": (encoded(picture(40, 40).resize((1, 1))), "1 x 1 pixels; at least 16"),
    "wide": (encoded(Image.new("L", (20_000, 20))), "no more than 16384 each way"),
    "a bomb": (encoded(Image.new("1", (16_000, 16_000))), "more than 50,000,000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photo_is_refused_with_the_reason(name: str, client: TeranClient) -> None:
    photo, reason = REFUSED[name]
    with pytest.raises(TeranInputError, match=reason):
        client.detect(photo)
    with pytest.raises(TeranInputError, match=reason):
        client.index(Entry(photo, name), gallery="refused")
    told: dict[str, str] = {}
    good = encoded(picture(100, 80))
    entries = [Entry(photo, name), Entry(good, "good")]
    stored = client.index(
        entries, gallery="refused", refused=lambda one, error: told.update({one: str(error)})
    )
    assert stored == ["good"]
    assert list(told) == [name]
    assert reason in told[name]


def test_only_photos_are_refused_one_by_one(repository: Path, folder: Path, tmp_path: Path) -> None:
    """Where the key is wrong, the first photo ends it: the others would fare no better."""
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "key").chmod(0o600)
    flags = ("--gallery", str(tmp_path / "gallery"), "--write-key-file", str(tmp_path / "key"))
    told: list[str] = []
    with (
        background_server(repository, *flags) as running,
        TeranClient(running.url) as connected,
        pytest.raises(TeranInputError, match="only with the server's key"),
    ):
        connected.index(photos(folder), refused=lambda name, _: told.append(name))
    assert told == []


def test_what_is_meant_by_a_string(folder: Path, client: TeranClient) -> None:
    sentence = "a dog " * 100 + "."
    assert client.index(sentence, gallery="sentences") == sentence
    assert len(client.index(f"{folder}/", gallery="slash")) == 4
    with pytest.raises(TeranInputError, match=r"2 photos are called '0\.jpg'"):
        client.index([folder / "0.jpg", folder / "0.jpg"], gallery="twice")


def test_photos_need_a_server_that_takes_them(
    tiny_repository: Path, tmp_path: Path, folder: Path
) -> None:
    with (
        background_server(tiny_repository, "--gallery", str(tmp_path / "gallery")) as running,
        TeranClient(running.url) as connected,
    ):
        for call in (connected.detect, connected.encode_images, connected.index, connected.search):
            with pytest.raises(TeranInputError, match="takes no photos, only regions"):
                call(folder / "0.jpg")


def command(*arguments: str) -> tuple[int, str, str]:
    line = [sys.executable, "-m", "teran_client.cli", *arguments]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_directory_is_indexed_from_where_it_was_left(
    server: BackgroundServer, folder: Path, tmp_path: Path
) -> None:
    here = tmp_path / "photos"
    shutil.copytree(folder, here)
    (here / "below" / "4.png").rename(here / "below" / "[a] very long name, which is shown.png")
    (here / "damaged.jpg").write_bytes((here / "0.jpg").read_bytes()[:400])
    (here / "text.png").write_text("no picture")
    (here / "metadata.json").write_text(json.dumps({"0.jpg": {"place": "here"}}))
    options = ("--gallery", "holidays", "--url", server.url)
    index = ("index", str(here), "--recursive", *options)
    status, said, errors = command(*index)
    assert (status, said) == (1, "5 images indexed in holidays\n")
    assert "not indexed: damaged.jpg: " in errors
    assert "the photo is damaged" in errors
    assert "not indexed: text.png: " in errors
    (here / "damaged.jpg").unlink()
    (here / "text.png").unlink()
    assert command(*index)[:2] == (0, "0 images indexed in holidays, 5 were there\n")
    picture(100, 90, seed=9).save(here / "1.png")
    assert command(*index)[:2] == (0, "1 images indexed in holidays, 4 were there\n")
    status, said, _ = command("search", CAPTION, *options, "--where", '{"place": "here"}')
    assert [line.split("\t")[1] for line in said.splitlines()] == ["id", "0.jpg"]
    wide = ("--where", '{"width": {"gte": 300}}', "--json")
    hits = json.loads(command("search", CAPTION, *options, *wide)[1])["hits"]
    there = {hit["id"]: hit["metadata"] for hit in hits}
    assert sorted(there) == ["3.jpg", "below/[a] very long name, which is shown.png"]
    assert {**there["3.jpg"], "sha256": ""} == {
        "width": 500, "height": 64, "taken": "2019-07-21T10:11:12", "sha256": "",
    }  # fmt: skip
    status, said, _ = command("match", str(here / "2.webp"), CAPTION, "--url", server.url)
    assert status == 0
    assert said.startswith("score ")


NAMES = ("photo", "proposal_network", "proposals", "region_network", "regions", "detect_regions")
INPUTS: dict[str, dict[str, tuple[Any, tuple[int, ...]]]] = {
    "photo": {"photo": (np.uint8, (200,))},
    "detect_regions": {"photo": (np.uint8, (200,))},
    "proposal_network": {"pixels": (np.float32, (3, 64, 96)), "pixel_mask": (np.bool_, (64, 96))},
    "proposals": {
        "objectness": (np.float32, (12, 6, 8)),
        "deltas": (np.float32, (48, 6, 8)),
        "photo_size": (np.int32, (2,)),
    },
    "region_network": {
        "res4": (np.float32, (CONFIG.res4_channels, 6, 8)),
        "proposals": (np.float32, (5, 4)),
    },
    "regions": {
        "proposal_features": (np.float32, (5, TINY.feature_dim)),
        "class_scores": (np.float32, (5, 1 + CONFIG.classes)),
        "proposals": (np.float32, (5, 4)),
        "photo_size": (np.int32, (2,)),
    },
}
VALUES = st.sampled_from([0.0, 1.0, -1.0, 64.0, 1e9, -1e9, 3e38, float("nan"), float("inf")])


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """Requests of the right tensors whose shapes and values may be anything."""
    name = draw(st.sampled_from(NAMES))
    tensors = []
    for key, (dtype, usual) in INPUTS[name].items():
        shape = list(usual)
        if draw(st.integers(0, 3)) == 0:
            axis = draw(st.integers(0, len(shape) - 1))
            shape[axis] = draw(st.sampled_from([0, 1, 3, 33, 160, 320, 20_000]))
            if np.prod(shape) > 4_000_000:
                shape[axis] = 320
        values = np.full([1, *shape], draw(VALUES) if dtype == np.float32 else 1)
        if dtype == np.float32:
            places = draw(st.lists(st.tuples(st.integers(0, 1 << 20), VALUES), max_size=5))
            for place, value in places:
                if values.size:
                    values.flat[place % values.size] = value
        elif dtype == np.int32:
            values[:] = draw(st.sampled_from([0, -1, 1, 64, 48, 1 << 30]))
        elif dtype == np.uint8 and values.size:
            data = draw(st.binary(max_size=values.size))
            values.flat[: len(data)] = np.frombuffer(data, np.uint8)
        with np.errstate(all="ignore"):
            array = values.astype(dtype)
        tensor = triton.InferInput(key, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return name, tensors


def test_whatever_is_sent_the_others_go_on(
    server: BackgroundServer, folder: Path, client: TeranClient
) -> None:
    """Models between the first and the last can be called as well, with anything."""
    photo = folder / "0.jpg"
    expected = client.detect(photo).regions.features
    connection = triton.InferenceServerClient(server.url)
    statuses: set[str] = set()

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(requests())
    def send(request: tuple[str, list[Any]]) -> None:
        name, tensors = request
        try:
            connection.infer(name, tensors, client_timeout=30)
        except InferenceServerException as error:
            statuses.add(str(error.status()))

    send()
    assert statuses <= {"StatusCode.INVALID_ARGUMENT"}
    assert statuses
    assert client.detect(photo).regions.features == pytest.approx(expected, abs=1e-5)
