"""Which servers an address means."""

import pytest
from teran_client import TeranClient, TeranInputError
from teran_client.address import target


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8001", "localhost:8001"),
        ("[::1]:8001", "[::1]:8001"),
        ("dns:///teran.example:8001", "dns:///teran.example:8001"),
        ("10.0.0.1:8001,10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        ("[::1]:1, [::2]:1", "ipv6:[::1]:1,[::2]:1"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert target(url) == expected


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost:8001", "a:1,", "a:1,b:1", "10.0.0.1:1,[::1]:1", "dns:///a:1,b:1"],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(TeranInputError, match="url is"):
        TeranClient(url)
