"""The project keeps its own promises: few dependencies, pinned and hashed, no registry named, one version."""

import compileall
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tollhouse
from tollhouse.config.parse import parse
from tollhouse.gateway.build import validate

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MOST_PACKAGES = 25
MOST_MEGABYTES = 70  # of files as they are in the wheels
MOST_COMPILED = 93  # the same with the bytecode that pip makes of them unless it is told not to
# Of these 93 the package itself is 14, nearly all of it code and its bytecode; 20 are what `cel` wants for a command
# line of its own (rich, pygments, prompt_toolkit, wcwidth) and nothing here imports.

# Where a client would be told to fetch from. Spelled in pieces, so that this file does not hold what it looks for.
REGISTRIES = re.compile(
    "|".join(
        (
            r"(?:index|find)-" + r"(?:url|links)\b.*?://",
            "files[.]python" + "hosted[.]org",
            "pypi[.]org" + "/simple",
            "registry[.]npm" + "js[.]org",
            r'"resol' + r'ved": "https?:',
        )
    )
)


def tracked() -> list[Path]:
    """Files of the repository, also those not committed yet; what .gitignore names is left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git work tree")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def pinned(file: str) -> dict[str, str]:
    """Each requirement of a locked file by name, with all that stands after the version."""
    text = (REQUIREMENTS / file).read_text().replace("\\\n", " ")
    return {line.split("==")[0]: line for line in text.splitlines() if line and not line.startswith("#")}


@pytest.mark.parametrize("file", ["build.txt", "dev.txt", "local-weights.txt", "runtime.txt", "serve.txt"])
def test_requirements_are_pinned_and_hashed(file: str) -> None:
    lines = pinned(file)
    assert lines
    for name, line in lines.items():
        assert re.match(r"[a-z0-9-]+==[0-9][^ ;]*( ; [^-]+?)? +--hash=sha256:[0-9a-f]{64}", line), name


def test_the_locked_files_agree() -> None:
    dev = pinned("dev.txt")
    for file in ("build.txt", "runtime.txt"):
        for name, line in pinned(file).items():
            assert dev[name].split(" ")[0] == line.split(" ")[0]


def test_every_runtime_dependency_is_locked_and_bounded() -> None:
    locked = pinned("runtime.txt")
    for requirement in PROJECT["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        assert name.lower() in locked
        assert ">=" in requirement, requirement
        assert "<" in requirement, requirement


def test_no_file_names_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if (match := REGISTRIES.search(path.read_bytes().decode("utf-8", "replace")))
    ]
    assert not found


def test_npm_packages_are_locked_by_integrity() -> None:
    packages = json.loads((ROOT / "tests/e2e/node/package-lock.json").read_text())["packages"]
    assert all(path == "" or package.get("integrity") for path, package in packages.items())


def test_versions_agree() -> None:
    said = subprocess.run([Path(sys.executable).parent / "tollhouse", "version"], capture_output=True, check=True)
    assert said.stdout.decode().strip() == PROJECT["version"] == importlib.metadata.version("tollhouse")


def test_the_package_is_typed() -> None:
    assert (Path(tollhouse.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("serves", ["models", "mcp"])
@pytest.mark.parametrize("kind", ["bare", "full"])
def test_the_benchmark_runs_configurations_that_are_valid(kind: str, serves: str, tmp_path: Path) -> None:
    environment = {"CLIENT_KEY": "sk-bench-0123456789abcdef", "DIRECTORY": str(tmp_path)}
    environment |= {"METRICS_PORT": "2", "PORT": "1", "UPSTREAM": "3"}
    text = "".join((ROOT / "bench" / "configs" / f"{part}.yaml").read_text() for part in (kind, serves))
    validate(parse(text, str(tmp_path / "tollhouse.yaml"), environment).config)


@pytest.mark.timeout(300)
def test_an_install_without_extras_is_small(tmp_path: Path) -> None:
    """What `pip install tollhouse` brings, the locked packages and the package itself, measured both ways: the files
    of the wheels, which is what the budget is about, and what is on the disk once pip has compiled them."""
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(tmp_path)]
    subprocess.run([*install, "--require-hashes", "-r", str(REQUIREMENTS / "runtime.txt")], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", "--no-index", str(ROOT)], check=True)
    packages = {
        dist.metadata["Name"]: sum(file.size or 0 for file in dist.files or ())
        for dist in importlib.metadata.distributions(path=[str(tmp_path)])
    }
    assert len(packages) <= MOST_PACKAGES, sorted(packages)
    assert size_of(tmp_path) <= MOST_MEGABYTES * 1_000_000, sorted(packages.items(), key=lambda item: -item[1])
    # Some packages carry files that no Python 3 compiles; pip passes over them too.
    compileall.compile_dir(tmp_path, quiet=2)
    assert any(tmp_path.rglob("*.pyc"))
    assert size_of(tmp_path) <= MOST_COMPILED * 1_000_000


def size_of(directory: Path) -> int:
    """Bytes of all files in it."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
