"""The synchronous client is the asynchronous one's twin: same verbs, types and help."""

import inspect

from teran_client import AsyncTeranClient, TeranClient

from tools.generate_sync import TARGET, generate


def test_it_is_up_to_date() -> None:
    assert generate() == TARGET.read_text(), "run `make generate`"


def test_every_verb_is_there_with_its_help() -> None:
    for name, verb in inspect.getmembers(AsyncTeranClient, inspect.iscoroutinefunction):
        if name.startswith("_"):
            continue
        twin = getattr(TeranClient, name)
        assert not inspect.iscoroutinefunction(twin)
        assert (
            inspect.signature(twin).parameters.keys() == inspect.signature(verb).parameters.keys()
        )
        assert twin.__doc__
        assert "asynchronous" not in twin.__doc__
