"""Text -> Config, with everything that is wrong with it found in one pass.

Theory of operation: the text becomes plain values (`document`), those become a Config (pydantic), and the Config is
looked at as a whole (`checks`). When values do not fit, what is wrong is noted and left out, and the rest is tried
again, so that one mistake does not hide another; what only follows from something left out is not reported.

Rule: nothing is ever taken over in part. Either there is a Config and no problem, or a LoadError with all of them.
"""

import os
import sys
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from tollhouse.config import checks
from tollhouse.config.document import read
from tollhouse.config.places import Path, Places, render, unrender
from tollhouse.config.secrets import ABSENT, Secrets, content_of, digest, digest_of
from tollhouse.config.spec import Config, ModelSpec
from tollhouse.config.wording import Finding, explain, pointless
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.spec import Reading

__all__ = ["LoadError", "Loaded", "Positions", "load", "parse"]

_ROUNDS: Final = 12  # of leaving out and trying again; each finds at least one mistake that another one hid


class Positions:
    """Says where in its file a setting stands, also long after the file was read."""

    __slots__ = ("_places", "file")

    def __init__(self, text: str, file: str) -> None:
        self._places = Places(text, file)
        self.file = file

    def __repr__(self) -> str:
        return f"<Positions in {self.file}>"

    def problem(self, path: Path | str, message: str, *, key: bool = False) -> Problem:
        """A Problem with the setting at `path`: keys and indices, or as written in a Problem, `models[0].name`."""
        steps = unrender(path) if isinstance(path, str) else path
        line, column = self._places.at(steps, key=key)
        return Problem(message, file=self.file, line=line, column=column, path=render(steps))


@dataclass(frozen=True, slots=True, repr=False)
class Loaded:
    """A configuration without problems, and what it was made from.

    files: the digest (`secrets.digest`) of each file that was read for it, the configuration file among them, by
    absolute name; a change of any of them may change the configuration. positions: for problems found later, when it
    is built.
    """

    config: Config
    files: Mapping[str, str]
    positions: Positions
    _secrets: Secrets
    _models: Mapping[bytes, ModelSpec]

    def __repr__(self) -> str:
        return f"<Loaded: {self.positions.file}>"

    def complete(self, problems: Iterable[Problem]) -> list[Problem]:
        """`problems` of building this configuration in the order of its file; those without a line get one.

        Their paths are those of settings (`models[0].name`), or say whose setting it is: `model smart: limits`,
        `models.smart`.
        """
        complete = []
        for problem in problems:
            if not problem.line:
                message = self._secrets.redact(problem.message)
                problem = self.positions.problem(self._path(problem.path), message)
            complete.append(problem)
        return _in_order(complete)

    def _path(self, written: str) -> Path:
        owner, _, setting = written.partition(": ")
        level, _, name = owner.partition(" ")
        config = self.config
        base: Path | None = () if owner == "top" else None
        if level == "model" or owner.startswith("models."):
            name = name or owner.removeprefix("models.")
            base = next((("models", n) for n, model in enumerate(config.models) if model.name == name), None)
        elif level == "route":
            base = next((("routes", n) for n, route in enumerate(config.routes) if route.name == name), None)
        elif level == "server" and name:
            base = ("mcp", "servers", name)
        elif level == "tool":
            server, _, tool = name.partition("/")
            base = ("mcp", "servers", server, "tools", tool)
        return unrender(written) if base is None else (*base, *unrender(setting))


class LoadError(ConfigError):
    """What is wrong, all of it. files: as of Loaded, so that a change of any of them can be tried."""

    def __init__(self, problems: list[Problem], files: Mapping[str, str]) -> None:
        super().__init__(problems)
        self.files = files


def load(path: str, env: Mapping[str, str] = os.environ, previous: Loaded | None = None) -> Loaded:
    """The configuration in the file `path`. Raises LoadError. Blocking: it reads files."""
    name = str(FilePath(path).absolute())
    try:
        piped = FilePath(path).is_fifo()
        content = FilePath(path).read_bytes() if piped else content_of(path)
    except OSError as error:
        raise LoadError([Problem(f"cannot be read: {error.strerror}", file=path)], {name: ABSENT}) from None
    own = {} if piped else {name: digest(content)}  # a pipe says something once
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        raise LoadError([Problem("not UTF-8 text", file=path, line=line, column=column)], own) from None
    try:
        loaded = parse(text, path, env, previous)
    except LoadError as error:
        raise LoadError(error.problems, {**error.files, **own}) from None
    return replace(loaded, files={**loaded.files, **own})


def parse(text: str, file: str, env: Mapping[str, str], previous: Loaded | None = None) -> Loaded:
    """The configuration that `text` is. Raises LoadError.

    file: its name for messages; files to read that it names are relative to its directory. env: what `${NAME}` reads,
    beside `${TOLLHOUSE_PYTHON}`, the Python that runs the gateway. previous: an earlier result; models that have not
    changed are the same objects in the new one.
    """
    directory = str(FilePath(file).absolute().parent)
    secrets = Secrets(ChainMap(dict(env), {"TOLLHOUSE_PYTHON": sys.executable}), directory)
    reading = Reading(directory)
    document = read(text, file, secrets.substitute)
    raw, problems = document.values, document.problems
    if raw is None:
        raise LoadError(problems, secrets.files)
    rest = _Rest(_reuse(raw, previous._models if previous is not None else {}), document.unresolved)
    findings = pointless(Config, raw, document.empty)
    config = rest.settle(reading, findings)
    files = {**{name: digest_of(name) for name in reading.files}, **secrets.files}
    findings += checks.check_names(raw, rest.left_out)
    if config is not None:
        findings += checks.check(config, raw, rest.left_out)
    if findings or problems:
        places = Places(text, file)
        for found in findings:
            line, column = places.at(found.path, key=found.key)
            message = secrets.redact(found.message, found.near)
            problems.append(Problem(message, file=file, line=line, column=column, path=render(found.path)))
        raise LoadError(_in_order(problems), files)
    assert config is not None  # every round without a Config leaves a finding
    return Loaded(config, files, Positions(text, file), secrets, _known(raw, config, reading.files))


def _in_order(problems: list[Problem]) -> list[Problem]:
    unique = {(p.line, p.column, p.path, p.message): p for p in problems}
    return [unique[key] for key in sorted(unique)]


# ---- models that stayed the same


def _reuse(raw: dict[str, Any], before: Mapping[bytes, ModelSpec]) -> dict[str, Any]:
    """`raw` with ModelSpecs of an earlier reading in place of the models that are written just as then."""
    models = raw.get("models")
    if not before or not isinstance(models, list):
        return raw
    same = [before.get(_encoded(model)) for model in models]
    return {**raw, "models": [model if spec is None else spec for model, spec in zip(models, same, strict=True)]}


def _known(raw: dict[str, Any], config: Config, files: Collection[str]) -> dict[bytes, ModelSpec]:
    """The models, by how they are written: all that name no file, which may change beside them. Only a Spec that is
    made anew has its files read and watched."""
    models = raw.get("models")
    if not isinstance(models, list):
        return {}
    names = {FilePath(file).name.encode("utf-8", "surrogatepass") for file in files}
    known = {_encoded(model): spec for model, spec in zip(models, config.models, strict=True)}
    return {model: spec for model, spec in known.items() if not any(name in model for name in names)}


def _encoded(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


# ---- finding everything


class _Rest:
    """The values, less what was found to be wrong. Paths are paths into the whole document throughout."""

    def __init__(self, raw: dict[str, Any], unresolved: list[Path]) -> None:
        self._raw = raw
        self._pruned: dict[Path, bool] = dict.fromkeys(unresolved, True)  # path -> whether its lack is felt

    @property
    def left_out(self) -> Collection[Path]:
        return self._pruned.keys()

    def settle(self, reading: Reading, findings: list[Finding]) -> Config | None:
        """The Config of what is right; what is wrong is added to `findings`. None when too little is right."""
        self._pruned.update((one.prune, False) for one in findings)
        for _ in range(_ROUNDS):
            origins: dict[Path, list[int]] = {}
            rest = self._rest(self._raw, (), origins, self._gone_at())
            try:
                return Config.model_validate(rest, context=reading)
            except ValidationError as error:
                details = error.errors(include_url=False, include_input=False)
                found = explain(Config, self._raw, details, rest, origins)
            findings += [one for one in found if not one.echo and not self._follows(one)]
            self._pruned.update((one.prune, not one.needless) for one in found)
            if () in self._pruned:
                break
        return None

    def _follows(self, found: Finding) -> bool:
        """Whether `found` may be there only because something was left out before."""
        if found.missing:
            return found.path in self._pruned
        below = len(found.path)
        return any(felt and gone[:below] == found.path for gone, felt in self._pruned.items())

    def _gone_at(self) -> set[Path]:
        """Every path on the way to something that is left out, for walking only there."""
        return {gone[:n] for gone in self._pruned for n in range(len(gone) + 1)}

    def _rest(self, value: Any, path: Path, origins: dict[Path, list[int]], way: set[Path]) -> Any:
        if path not in way:
            return value
        if isinstance(value, dict):
            return {
                key: self._rest(inner, (*path, key), origins, way)
                for key, inner in value.items()
                if (*path, key) not in self._pruned
            }
        if isinstance(value, list):
            kept = [n for n in range(len(value)) if (*path, n) not in self._pruned]
            if len(kept) < len(value):
                origins[path] = kept
            return [self._rest(value[n], (*path, n), origins, way) for n in kept]
        return value
