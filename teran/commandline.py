"""How every `teran` command is run: what makes its options, and how its errors end."""

import os
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, is_dataclass
from io import TextIOWrapper
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_origin
from unicodedata import category

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.text import Text

import teran
from teran.errors import TeranError, TeranInputError
from teran.secrets import VARIABLES

T = TypeVar("T")
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON instead of a table.")
]
Unparsed = Parameter(parse=False)
"""Marks a field that is no option: commands take it elsewhere. Nor is a group of options one."""
_TRUTHS: set[str] = set()
"""Variables that are true or false, which may also be on or off."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def options(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are a command's options.

    A field's name, type, default and docstring are all that is written of an option: `grpc_port`
    is the flag --grpc-port and the environment variable TERAN_GRPC_PORT. A command with a parameter
    of the class has them all.
    """
    hint: Any
    for name, hint in cls.__annotations__.items():
        marks = getattr(hint, "__metadata__", (Unparsed,) if is_dataclass(hint) else ())
        if hint is not KW_ONLY and get_origin(hint) is not ClassVar and Unparsed not in marks:
            variable = Parameter(env_var=_variable(name), allow_leading_hyphen=True)
            plain = hint.__origin__ if marks else hint
            cls.__annotations__[name] = Annotated[plain, variable, *marks]  # what is marked wins
            _TRUTHS.update([_variable(name)] if hint is bool else [])
    return Parameter(name="*")(dataclass(frozen=True)(cls))


def to_environment(settings: Any, group: type) -> dict[str, str]:
    """The environment variables that give those options of `settings` which are in a group."""
    values = {one.name: getattr(settings, one.name) for one in fields(group)}
    return {_variable(name): str(value) for name, value in values.items() if value is not None}


def from_environment(group: type[T]) -> T:
    """A group of options as the environment variables have them."""
    app = App(result_action="return_value", exit_on_error=False, print_error=False)

    def read(*, settings: T = group()) -> T:  # noqa: B008
        return settings

    read.__annotations__["settings"] = group
    app.default(read)
    settings: T = app([])
    return settings


def _variable(option: str) -> str:
    return f"TERAN_{option.upper()}"


def new_app() -> App:
    """The `teran` command, without any sub-command yet."""
    return App(
        name="teran",
        help="Fine-grained image-text retrieval with TERAN on NVIDIA Triton.",
        version=teran.__version__,
        help_format="plaintext",
        exit_on_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(allow_repeating=True),  # the last one counts
    )


def run(app: App, arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with what it returns: 1 is a failure, 2 wrong input, 130 Ctrl-C."""
    app.register_install_completion_command()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # whoever reads a pipe waits for every line
    for name, value in [one for one in os.environ.items() if one[0].startswith(_variable(""))]:
        if name in _TRUTHS:
            word = value.strip().lower()
            os.environ[name] = {"on": "true", "off": "false"}.get(word, word)
        if not value and name not in VARIABLES:  # as good as not set, as in a compose file
            del os.environ[name]
    try:
        sys.exit(app(arguments) or 0)
    except CycloptsError:  # which is shown already
        sys.exit(2)
    except TeranError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, TeranInputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def printable(text: str) -> str:
    """Text on one line, with escapes for what a terminal would act on."""
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    """Whether it can be shown: joined emoji and wide spaces too, direction marks not."""
    return character.isprintable() or character == "\u200d" or category(character) == "Zs"


def plain(text: str) -> Text:
    """Text for a table, in which nothing is markup."""
    return Text(printable(text))
