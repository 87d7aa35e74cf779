"""`make dist`: builds wheel and source distribution, and proves them in empty environments.

The base install is the client alone; the `server` extra serves the demo's repository. The checkout
only exports that repository and draws the pictures that are searched.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from teran_export import ExportOptions, export

from examples.scenes.dataset import make_pngs, make_split
from examples.scenes.demo import MODEL
from examples.scenes.regions import DETECTOR
from teran.cli.background import background_server

ROOT = Path(__file__).parents[1]
DIST, WORK = ROOT / "dist", ROOT / "build" / "dist"
BASE = {
    "attrs", "cyclopts", "docstring-parser", "grpcio", "markdown-it-py", "mdurl", "ml-dtypes",
    "numpy", "packaging", "pillow", "pip", "protobuf", "pygments", "python-rapidjson", "rich",
    "rich-rst", "setuptools", "teran-serving", "tritonclient", "typing-extensions", "urllib3",
}  # fmt: skip
"""All that a base install may bring."""
HELP_SECONDS = 1.0
SCENES = 20


def main() -> None:
    """Build and prove."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    os.chdir(WORK)  # nobody finds the checkout where it is started
    wheel = build()
    base = install("base", str(wheel))
    prove_base(base)
    prove_server(install("server", f"{wheel}[server]"), base)
    step(f"passed: {', '.join(sorted(path.name for path in DIST.iterdir()))}")


def build() -> Path:
    """The source distribution, and the wheel that is built from it alone."""
    step("building the source distribution, and the wheel from it")
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    return next(DIST.glob("*.whl"))


def install(name: str, requirement: str) -> Path:
    """An environment with nothing but one requirement and what it asks for."""
    step(f"installing {Path(requirement).name} into an empty environment")
    venv.create(WORK / name, with_pip=True)
    python = WORK / name / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, requirement)
    return python.parent


def prove_base(base: Path) -> None:
    """The client comes without torch or anything else it does not need, and is quick to help."""
    installed = json.loads(run(base / "pip", "list", "--format", "json"))
    names = {one["name"].lower().replace("_", "-") for one in installed}
    require(names <= BASE, f"the base install brings {sorted(names - BASE)} as well")
    run(base / "python", "-c", "import sys, teran_client; assert 'torch' not in sys.modules")
    times = []
    for _ in range(5):
        started = time.perf_counter()
        run(base / "teran", "--help")
        times.append(time.perf_counter() - started)
    print(f"{len(names)} packages; teran --help in {min(times):.2f} s")
    require(min(times) < HELP_SECONDS, "teran --help takes too long")
    refused = subprocess.run(
        [base / "teran", "serve", "x"], capture_output=True, text=True, check=False
    )
    require("pip install 'teran-serving[server]'" in refused.stderr, f"no advice: {refused.stderr}")


def prove_server(server: Path, base: Path) -> None:
    """The wheel's own server answers the wheel's own client."""
    step("serving the demo's model from the wheel")
    options = ExportOptions(MODEL, WORK / "repository", "openvino", "fp32", detector=DETECTOR)
    repository = export(options, print).path
    samples = make_split("test", SCENES)
    pictures = WORK / "pictures"
    pictures.mkdir()
    for i, png in enumerate(make_pngs(samples)):
        (pictures / f"{i:03d}.png").write_bytes(png)
    with background_server(repository, program=[server / "teran"]) as running:
        url = running.url
        run(base / "teran", "index", "pictures", "--url", url)
        found = 0
        for i, sample in enumerate(samples):
            caption = sample.captions[0].text
            hits = json.loads(run(base / "teran", "search", caption, "--json", "--url", url))[
                "hits"
            ]
            found += hits[0]["id"] == f"{i:03d}.png"
    print(f"{found} of {SCENES} captions found their scene first")
    require(found >= 0.8 * SCENES, "too few")


def clean_environment() -> dict[str, str]:
    """This process's, without what would lead to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str | Path) -> str:
    """Run a command where there is no checkout, and return what it prints."""
    done = subprocess.run(
        command, env=clean_environment(),
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    require(done.returncode == 0, f"{' '.join(map(str, command))}: status {done.returncode}")
    return done.stdout


def require(condition: bool, message: str) -> None:
    """End where something is not as it must be."""
    if not condition:
        sys.exit(f"make dist: {message}")


def step(message: str) -> None:
    """Show what comes next."""
    print(f"\n== {message}", flush=True)


if __name__ == "__main__":
    main()
