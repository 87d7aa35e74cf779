"""Writes the synchronous client from the asynchronous one, where alone verbs are written by hand.

`make generate` after a verb was added or changed; a test compares what is written.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "client" / "teran_client"
TARGET = PACKAGE / "sync.py"
_SOURCES = ("aio", "gallery")
_HEADER = '"""The synchronous client: made from the asynchronous one by `make generate`."""'
_CLASS = '''
class TeranClient(BlockingClient):
    """Encodes, scores, matches, ranks, indexes and searches images and captions on a TERAN server.

    The same verbs as `AsyncTeranClient`; safe to use from several threads.

    Example:
        >>> with TeranClient("localhost:8001") as client:
        ...     match = client.match(image, "two dogs on a beach")
        ...     print(match.score_per_word, match.best_regions())
    """
'''


def generate() -> str:
    """The module's text."""
    trees = {name: ast.parse((PACKAGE / f"{name}.py").read_text()) for name in _SOURCES}
    methods = [made for tree in trees.values() for made in _methods(tree)]
    body = "\n".join(ast.unparse(made) for made in methods)
    text = _CLASS + re.sub("^", "    ", body, flags=re.MULTILINE)
    text = text.replace("asynchronous iterator", "iterator")
    known = {"BlockingClient": "teran_client.blocking", "AsyncTeranClient": "teran_client.aio"}
    known |= {"Iterator": "collections.abc", "Iterable": "collections.abc"}
    for name, tree in trees.items():
        known |= _names(name, tree)
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    imports = [f"from {known[name]} import {name}" for name in sorted(used & known.keys())]
    return _formatted("\n".join([_HEADER, *imports, text]))


def _names(module: str, tree: ast.Module) -> dict[str, str]:
    """Where the names of a module come from."""
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            names[node.name] = f"teran_client.{module}"
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = f"teran_client.{module}"
    return names


def _methods(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """The constructor and all public verbs, as a synchronous client has them."""
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for node in (one for made in classes if made.name.startswith("Async") for one in made.body):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            call = f"super().__init__(AsyncTeranClient({_arguments(node)}))"
            yield _method(node, call)
        elif isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith(("_", "close")):
            call = f"return self._run(self._client.{node.name}({_arguments(node)}))"
            yield _method(node, "..." if node.decorator_list else call)


def _method(node: ast.FunctionDef | ast.AsyncFunctionDef, body: str) -> ast.FunctionDef:
    """A method with the signature and the docstring of another."""
    statements = ast.parse(body).body
    if documentation := ast.get_docstring(node, clean=False):
        statements.insert(0, ast.Expr(ast.Constant(documentation)))
    made = ast.FunctionDef(node.name, node.args, statements, node.decorator_list, node.returns)
    _Synchronous().visit(made)
    return ast.fix_missing_locations(made)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A method's arguments, passed on."""
    positional = [one.arg for one in node.args.args[1:]]
    return ", ".join([*positional, *(f"{one.arg}={one.arg}" for one in node.args.kwonlyargs)])


class _Synchronous(ast.NodeTransformer):
    """Types of what is iterated over."""

    def visit_Name(self, node: ast.Name) -> ast.Name:
        names = {"AsyncIterator": "Iterator", "Items": "Iterable"}
        return ast.Name(names.get(node.id, node.id), node.ctx)


def _formatted(text: str) -> str:
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    stdin = ["--stdin-filename", str(TARGET), "-"]
    for arguments in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        command = [*ruff, *arguments, *stdin]
        text = subprocess.run(
            command, input=text, capture_output=True, text=True, check=True
        ).stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
