"""Reads which names TensorRT's published Python bindings have, from their wheels.

    pip download --no-deps tensorrt_cu12_bindings==10.16.1.11
    python -m tests.fakes.bindings tensorrt_cu12_bindings-*.whl

writes `bindings.json`: of the names that our code uses, those that each version has.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "export/teran_export/tensorrt/builder.py", ROOT / "teran/runtime/plan.py")
DATA = Path(__file__).with_name("bindings.json")
_OBJECTS = {
    "trt", "builder", "network", "parser", "config", "profile", "engine", "context", "e",
    "_runtime", "_engine",
}  # fmt: skip
"""Names of variables and fields that hold TensorRT's objects."""
OF_RTX = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
"""Which TensorRT-RTX alone has, and is asked for."""


def used_names() -> set[str]:
    """Attributes our code takes of TensorRT's objects, and methods it gives to them."""
    names = set()
    for source in SOURCES:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                holder = node.value
                while isinstance(holder, ast.Attribute | ast.Call) and not (
                    isinstance(holder, ast.Attribute) and holder.attr in _OBJECTS
                ):
                    holder = holder.value if isinstance(holder, ast.Attribute) else holder.func
                held = holder.attr if isinstance(holder, ast.Attribute) else ""
                if held or (isinstance(holder, ast.Name) and holder.id in _OBJECTS):
                    names.add(node.attr)
            if isinstance(node, ast.ClassDef) and node.bases:
                names |= {
                    one.name
                    for one in node.body
                    if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")
                }
    # One is asked for by name, one is our own.
    return (names | {"STRONGLY_TYPED"}) - {"summary"} - OF_RTX


def main(wheels: list[str]) -> None:
    """Write `bindings.json`."""
    found = {}
    for wheel in wheels:
        version = Path(wheel).name.split("-")[1]
        with zipfile.ZipFile(wheel) as archive:
            library = next(n for n in archive.namelist() if n.endswith("tensorrt.so"))
            data = archive.read(library)
            texts = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".py"))
        found[version] = sorted(
            name for name in used_names() if name.encode() + b"\0" in data or name.encode() in texts
        )
    DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for version, names in found.items():
        print(version, "lacks", sorted(used_names() - set(names)) or "nothing")


if __name__ == "__main__":
    main(sys.argv[1:])
