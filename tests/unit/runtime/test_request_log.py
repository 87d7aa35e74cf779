"""What a model logs of its own defects, and of what it expects."""

import json

import pytest

from teran.errors import GalleryError, TeranInputError
from teran.runtime.request_log import RequestLog


def test_a_defect_is_logged_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    log = RequestLog("gallery")
    failure = GalleryError("the gallery failed")
    try:
        raise KeyError("absent")
    except KeyError as cause:
        failure.__cause__ = cause
    log.defect("0123456789abcdef", failure)
    line = json.loads(capsys.readouterr().err)
    assert line["request_id"] == "0123456789abcdef"
    assert line["message"] == "the gallery failed"
    assert "KeyError: 'absent'" in line["exception"]


@pytest.mark.parametrize("error", [GalleryError("the disk is full"), TeranInputError("no such id")])
def test_what_is_expected_is_no_defect(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    RequestLog("gallery").defect("0123456789abcdef", error)
    assert capsys.readouterr().err == ""
