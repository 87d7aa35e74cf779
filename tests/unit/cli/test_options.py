"""Every option is written once: flag, environment variable and documents follow from it."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from teran_export.options import ExportOptions

from teran.cli.serve import serve
from teran.commandline import from_environment, new_app, to_environment
from teran.runtime.environment import LogLevel
from teran.runtime.settings import GallerySettings
from teran.secrets import VARIABLES
from teran.supervisor.logs import LogFormat
from teran.supervisor.settings import ServeSettings
from tools.generate_commands import TARGET, generate

ROOT = Path(__file__).parents[3]
CHANGED: dict[str, Any] = {
    "host": "0.0.0.0", "metrics_port": 1, "health_port": 2, "grpc_port": 3, "http_port": 4,
    "gallery": Path("/g"), "gallery_url": "http://q:6333",
    "gallery_api_key_file": Path("q.key"), "gallery_device": "cuda:1", "gallery_precision": "fp8",
    "tls_certificate": Path("c.pem"), "tls_key": Path("k.pem"), "tls_name": "n",
    "admin_key_file": Path("a.key"), "write_key_file": Path("w.key"), "insecure": True,
    "http": True, "max_wait": 0.5,
    "threads": 5, "startup_timeout": 6.5, "shutdown_timeout": 7.0, "drain": 1.5,
    "check_interval": 0.5, "metrics": False, "log_format": LogFormat.JSON,
    "gallery_count": 15, "gallery_snapshots": 9,
    "max_caption_bytes": 10, "max_photo_bytes": 20, "max_rows": 11, "max_query_rows": 12,
    "max_record_bytes": 13, "max_answer_bytes": 14,
    "log_level": LogLevel.DEBUG, "trace_url": "http://t", "trace_rate": 8, "verbose": True,
}  # fmt: skip
SETTINGS = ServeSettings(**CHANGED)


def flags(options: dict[str, Any]) -> list[str]:
    tokens = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            tokens.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            tokens += [f"--{flag}", str(value)]
    return tokens


def parsed(*tokens: str) -> tuple[ServeSettings, tuple[Any, ...]]:
    app: App = new_app()
    app.command(serve)
    _, bound, _ = app.parse_args(["serve", *tokens])
    return bound.kwargs.get("settings", ServeSettings()), bound.args


def test_all_options_of_the_server_are_tried_here() -> None:
    assert {one.name for one in fields(ServeSettings)} == {*CHANGED, "repository", "arguments"}


def test_options_are_flags() -> None:
    assert parsed("somewhere", *flags(CHANGED)) == (SETTINGS, (Path("somewhere"),))


@pytest.mark.parametrize("name", CHANGED)
def test_an_option_is_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = CHANGED[name]
    monkeypatch.setenv(f"TERAN_{name.upper()}", str(value))
    monkeypatch.setenv("TERAN_REPOSITORY", "elsewhere")
    expected = replace(ServeSettings(), **{name: value})
    assert parsed() == (expected, (Path("elsewhere"),))


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERAN_THREADS", "3")
    assert parsed("r", "--threads", "4")[0].threads == 4


def test_the_last_of_a_repeated_flag_counts() -> None:
    assert parsed("r", "--grpc-port=0", "--grpc-port", "9001")[0].grpc_port == 9001


def test_a_value_may_begin_with_a_hyphen() -> None:
    assert parsed("r", "--tls-name", "-abc", "--verbose")[0].tls_name == "-abc"


def test_groups_of_options_are_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERAN_LIMITS", "3")
    monkeypatch.setenv("TERAN_BUILD", "nightly")
    assert from_environment(ExportOptions) == ExportOptions()


def test_what_follows_two_dashes_is_triton_s() -> None:
    arguments = parsed("r", "--verbose", "--", "--log-verbose=1", "-x")[1]
    assert arguments == (Path("r"), "--log-verbose=1", "-x")


@pytest.mark.parametrize("settings", [SETTINGS, ServeSettings()])
def test_a_model_reads_what_the_supervisor_passes_on(
    settings: ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in to_environment(settings, GallerySettings).items():
        monkeypatch.setenv(name, value)
    read = from_environment(GallerySettings)
    for one in fields(GallerySettings):
        assert getattr(read, one.name) == getattr(settings, one.name)


def test_the_page_of_all_options_is_up_to_date() -> None:
    page = TARGET.read_text()
    assert page == generate(), "run `make generate`"
    for one in (*fields(ServeSettings), *fields(ExportOptions)):
        if one.name not in ("repository", "arguments", "bundle", "out", "limits", "build", "force"):
            assert f"TERAN_{one.name.upper()}]" in page


def test_container_and_documents_name_no_variable_that_is_not_there() -> None:
    known = {*re.findall(r"env: (TERAN_\w+)", TARGET.read_text()), *VARIABLES}
    places = ("Dockerfile", "compose.yaml", "container/*", "deploy/**/*.yaml", "docs/*.md", "*.md")
    for path in (path for place in places for path in ROOT.glob(place) if path.is_file()):
        named = set(re.findall(r"\bTERAN_[A-Z_]+\b", path.read_text()))
        assert named <= known, (path, named - known)
