"""A data set evaluated by all roads: what is served ranks as PyTorch does, in fp32."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from teran_client import TeranClient

from teran.cli.background import BackgroundServer
from tests.datasets import write_dataset

IMAGES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, IMAGES)
    return root


def evaluated(data: Path, out: Path, *options: str) -> tuple[dict[str, Any], str]:
    line = [sys.executable, "-m", "teran_client.cli", "evaluate", str(data), "--dataset", "f30k"]
    line += ["--json", str(out / "out.json"), "--cache", str(out / "cache"), *options]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads((out / "out.json").read_text())
    return found, ended.stdout


@pytest.mark.parametrize("through", [(), ("--through", "gallery")])
def test_ranks_are_those_of_pytorch(
    data: Path,
    tiny_bundle: Path,
    server: BackgroundServer,
    client: TeranClient,
    tmp_path: Path,
    through: tuple[str, ...],
) -> None:
    galleries = set(client.gallery_info())
    options = ("--model", str(tiny_bundle), "--server", server.url, *through)
    found, said = evaluated(data, tmp_path, *options)
    assert found["evaluated"] == ("gallery" if through else "server")
    for kind in ("image_retrieval", "sentence_retrieval"):
        for name in ("r1", "r5", "r10", "median_rank", "mean_rank", "ndcg_rouge_l"):
            # A random model ranks by scores so close together that rounding decides of some.
            assert found[kind][name] == pytest.approx(found["fp32"][kind][name], rel=2e-3), name
    assert max(map(abs, found["difference"].values())) <= 0.5
    assert "PyTorch fp32" in said
    assert set(client.gallery_info()) == galleries, "its own are gone"


def test_an_explanation_from_the_server_is_that_of_pytorch(
    data: Path, tiny_bundle: Path, server: BackgroundServer, tmp_path: Path
) -> None:
    for folder, suffix in (("bu_att", "npz"), ("bu_box", "npy")):
        file = data / "features_36" / folder / f"3.{suffix}"
        (tmp_path / f"3.{suffix}").write_bytes(file.read_bytes())
    pages: list[list[tuple[str, str]]] = []
    for road in (("--model", str(tiny_bundle)), ("--server", server.url)):
        line = [sys.executable, "-m", "teran_client.cli", "explain", str(tmp_path / "3.npz")]
        line += ["a dog runs", str(tmp_path / "drawn"), "--size", "80x60", *road]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
        page = (tmp_path / "drawn.html").read_text()
        pages.append(re.findall(r"<b>(.*?)</b> <small>(.*?)</small>", page))
    words, cosines = zip(*pages[0], strict=True)
    assert words == ("a", "dog", "runs")
    assert [word for word, _ in pages[1]] == list(words)
    assert [float(cosine) for _, cosine in pages[1]] == pytest.approx(
        [float(one) for one in cosines], abs=0.011
    )
