"""The `teran` command as a user types it, against a real server."""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from teran_client import Entry, TeranClient

from teran.cli.background import BackgroundServer
from tests.authors import TEXT_CONFIG, authors_config, write_checkpoint
from tests.data import captions, images


def teran(
    *arguments: str | Path, url: str = "", stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "teran_client.cli", *map(str, arguments)]
    flags = ["--url", url] if url else []
    return subprocess.run(
        [*command, *flags], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in the authors' files."""
    folder = tmp_path_factory.mktemp("features")
    for image in images(5, seed=1):
        np.savez(folder / f"{image.name}.npz", feat=image.features)
        np.save(folder / f"{image.name}.npy", image.boxes * [640, 480, 640, 480])
    return folder


def test_encode_writes_what_the_client_returns(
    server: BackgroundServer, client: TeranClient, directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "images.npz"
    flags = ("--size", "640x480", "--out", out)
    result = teran("encode", "images", directory, *flags, url=server.url)
    assert result.returncode == 0, result.stderr
    assert f"5 images written to {out}" in result.stdout
    with np.load(out) as archive:
        for image in images(5, seed=1):
            expected = client.encode_images(image)
            np.testing.assert_allclose(archive[image.name], expected, atol=1e-3)
    sentences, out = captions(7), tmp_path / "words.npz"
    result = teran(
        "encode", "captions", "-", "--out", out, url=server.url, stdin="\n".join(sentences)
    )
    assert "7 captions written" in result.stdout
    with np.load(out) as archive:
        expected = client.encode_captions(sentences[6]).word_embeddings
        np.testing.assert_allclose(archive["6"], expected, atol=1e-5)


def test_rank_and_match_agree(server: BackgroundServer, directory: Path) -> None:
    ranked = teran(
        "rank", "a dog runs", directory, "-k", "3", "--size", "640x480", "--json", url=server.url
    )
    best = json.loads(ranked.stdout)
    assert len(best) == 3
    assert best[0]["score"] >= best[1]["score"] >= best[2]["score"]
    features = directory / f"{best[0]['name']}.npz"
    matched = teran("match", features, "a dog runs", "--size", "640x480", "--json", url=server.url)
    report = json.loads(matched.stdout)
    assert report["score"] == pytest.approx(best[0]["score"], abs=1e-3)
    assert [entry["word"] for entry in report["words"]] == ["a", "dog", "runs"]
    table = teran("match", features, "a dog runs", "--size", "640x480", url=server.url)
    assert "best region" in table.stdout


def test_progress_is_shown_while_encoding(server: BackgroundServer, directory: Path) -> None:
    out = directory / "shown.npz"
    result = teran("encode", "images", directory, "--size", "640x480", "--out", out, url=server.url)
    out.unlink()
    assert "encoding images" in result.stderr
    assert "100%" in result.stderr
    assert "encoding" not in result.stdout


def executions(server: BackgroundServer) -> float:
    """How often the textual encoder has been run."""
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    wanted = 'nv_inference_exec_count{model="textual_encoder"'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


def test_interrupt_ends_the_command(server: BackgroundServer, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a long run: status 130, no traceback, no half-written file."""
    sentences, out = tmp_path / "captions.txt", tmp_path / "words.npz"
    sentences.write_text("a dog runs on the beach with a ball\n" * 200_000)
    command = [sys.executable, "-m", "teran_client.cli", "encode", "captions", str(sentences)]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--url", server.url], stderr=subprocess.PIPE, text=True
    )
    before = executions(server)
    while executions(server) < before + 100:  # which canaries alone would not reach: it is at work
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert not out.exists()


def test_index_search_and_gallery_commands(
    server: BackgroundServer, directory: Path, tmp_path: Path
) -> None:
    for path in directory.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    (tmp_path / "metadata.json").write_text(json.dumps({"image-1": {"label": "dog"}}))
    Image.new("RGB", (640, 480), "red").save(tmp_path / "image-1.png")
    flags = ("--gallery", "cli", "--size", "640x480")
    first = teran("index", tmp_path, *flags, url=server.url)
    assert first.returncode == 1
    assert "5 images indexed in cli" in first.stdout
    assert "not indexed" in first.stderr
    assert "bad.npz" in first.stderr
    (tmp_path / "bad.npz").unlink()
    second = teran("index", tmp_path, *flags, url=server.url)
    assert second.returncode == 0
    assert "0 images indexed in cli, 5 were there" in second.stdout

    found = teran("search", "a dog runs", "-g", "cli", "-k", "3", "--json", url=server.url)
    assert [set(hit) >= {"id", "score", "uri"} for hit in json.loads(found.stdout)["hits"]] == [
        True
    ] * 3
    where = '{"label": "dog"}'
    only = teran("search", "a dog", "-g", "cli", "--where", where, "--explain", url=server.url)
    assert "image-1" in only.stdout
    assert "best of 1 items" in only.stderr
    page = tmp_path / "page.html"
    teran("search", "a <dog>", "-g", "cli", "--html", page, url=server.url)
    text = page.read_text()
    assert "a &lt;dog&gt;" in text
    assert "data:image/jpeg;base64," in text

    assert "cli" in teran("gallery", "info", url=server.url).stdout
    snapshot = teran("gallery", "snapshot", "-g", "cli", url=server.url).stdout.strip()
    restored = teran("gallery", "restore", Path(snapshot).name, "cli2", url=server.url)
    assert "5 items restored to cli2" in restored.stdout
    assert "live is cli2" in teran("gallery", "alias", "live", "cli2", url=server.url).stdout
    gone = teran("gallery", "delete", "image-1", "absent", "-g", "cli", url=server.url)
    assert "1 of 2 items removed" in gone.stdout
    assert teran("gallery", "delete", "-g", "cli", url=server.url).returncode == 2
    assert (
        "cli removed"
        in teran("gallery", "delete", "-g", "cli", "--everything", url=server.url).stdout
    )


def test_what_others_have_stored_is_only_text(
    server: BackgroundServer, client: TeranClient
) -> None:
    """Neither markup nor what a terminal would act on."""
    entry = Entry(images(1)[0], "[/photo]", uri="file:///\x1b]0;owned\x07\u202e.jpg")
    client.index(entry, gallery="markup")
    shown = teran("search", "a dog", "-g", "markup", url=server.url)
    assert shown.returncode == 0, shown.stderr
    assert "[/photo]" in shown.stdout
    assert not set("\x1b\x07\u202e") & set(shown.stdout)


def test_a_file_that_can_t_be_an_id_is_listed_and_the_rest_indexed(
    server: BackgroundServer, directory: Path, tmp_path: Path
) -> None:
    for path in directory.iterdir():
        shutil.copy(path, tmp_path)
    for suffix in (".npz", ".npy"):
        shutil.copy(tmp_path / f"image-0{suffix}", tmp_path / f"two\nlines{suffix}")
    result = teran("index", tmp_path, "-g", "odd", "--size", "640x480", url=server.url)
    assert result.returncode == 1
    assert "5 images indexed in odd" in result.stdout
    assert r"two\nlines" in result.stderr
    gone = teran("gallery", "alias", "live", "odd", url=server.url)
    assert gone.returncode == 0
    assert "alias live removed" in teran("gallery", "unalias", "live", url=server.url).stdout
    assert teran("gallery", "unalias", "live", url=server.url).returncode == 2


def test_profile_prints_a_tree(server: BackgroundServer) -> None:
    result = teran("profile", "--calls", "5", url=server.url)
    assert "├─ network and server" in result.stdout


def test_truths_may_be_on_or_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERAN_METRICS", "off")
    monkeypatch.setenv("TERAN_VERBOSE", " ON ")
    assert "no model repository at" in teran("serve", tmp_path / "absent").stderr


def test_a_reader_that_has_gone_is_no_defect(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "teran_client.cli",
        "doctor",
        str(tmp_path / "absent"),
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GRPC_PORT", "TLS_CERTIFICATE", "GALLERY", "METRICS", "URL"):
        monkeypatch.setenv(f"TERAN_{name}", "")
    result = teran("serve", tmp_path / "absent")
    assert "no model repository at" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("match", "absent.npz", "a dog"), 2, "absent.npz can't be read"),
        (("rank", "a dog", "."), 2, "holds no features"),
        (("encode", "captions", "absent.txt", "--out", "x.npz"), 2, "can't read absent.txt"),
        (("serve", "absent"), 1, "no model repository at absent"),
        (("export", "absent", "out"), 1, "absent is not a bundle"),
        (("export", "absent", "out", "--engine", "abacus"), 1, "no engine 'abacus'"),
        (("convert", "absent.pth", "out", "--vocabulary", "absent.txt"), 1, "can't read the voc"),
        (("profile", "--url", "127.0.0.1:1"), 1, "127.0.0.1:1 is not available"),
        (("profile", "--url", "http://localhost"), 2, "expected host:port"),
        (("profile", "--header", "nonsense"), 2, "expected key=value"),
    ],
)
def test_failures_are_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = teran(*arguments)
    assert result.returncode == status
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1


def test_convert_makes_a_bundle(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.pth", authors_config("symm"))
    (tmp_path / "text.json").write_text(json.dumps(TEXT_CONFIG))
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", ".", *(f"w{i}" for i in range(195))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    result = teran(
        "convert", checkpoint, tmp_path / "bundle",
        "--vocabulary", tmp_path / "vocab.txt", "--text-config", tmp_path / "text.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


def test_every_command_has_help_with_an_example() -> None:
    for command in (
        *(("encode", "images"), ("encode", "captions"), ("match",), ("rank",), ("profile",)),
        *(("serve",), ("export",), ("convert",), ("init-random",), ("index",), ("search",)),
        *(("gallery", name) for name in ("info", "delete", "snapshot", "restore", "alias")),
    ):
        result = teran(*command, "--help")
        assert result.returncode == 0
        assert "Example: teran" in result.stdout, command


def test_base_install_needs_no_torch() -> None:
    """Importing the client and its command must not import what only extras install."""
    heavy = ("torch", "onnx", "openvino", "onnxruntime", "nncf", "tokenizers", "psutil")
    code = (
        "import sys, teran_client, teran_client.cli\n"
        "from importlib.metadata import entry_points\n"
        "for e in entry_points(group='teran.commands'): e.load()(teran_client.cli.app)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
