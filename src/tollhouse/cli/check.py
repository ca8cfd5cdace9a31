"""`tollhouse check` and `tollhouse explain`: what a configuration says, without serving it."""

import argparse
import json
import sys
from pathlib import Path

from tollhouse.cli.command import Commands, text_of
from tollhouse.config.load import load_config
from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError
from tollhouse.gateway import explain
from tollhouse.gateway.accounts import unsealed
from tollhouse.gateway.build import validate
from tollhouse.gateway.listeners import admin_certificate, certificates

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add(
        "check", _check, "Read and build a configuration without serving it; print everything that is wrong."
    )
    sub.add_argument("config", help="the configuration file")
    sub.add_argument("--policy-tests", metavar="FILE", help="also see that its requests are decided as it expects")

    sub = commands.add("explain", _explain, "Say which route a request takes, and what each rule says of it.")
    sub.add_argument("config", help="the configuration file")
    sub.add_argument("request", help="a file with the request, in YAML or JSON; - for standard input")
    sub.add_argument("--json", action="store_true", help="one JSON object")


def _check(arguments: argparse.Namespace) -> int:
    loaded = load_config(Path(arguments.config))
    problems = []
    for check in (
        validate,
        lambda config: certificates(config.server.listen),
        lambda config: admin_certificate(config.server.admin),
    ):
        try:
            check(loaded.config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(loaded.complete(problems))
    if warning := unsealed(loaded.config):
        print(f"{arguments.config}: warning: {warning}", file=sys.stderr)
    print(f"{arguments.config}: fine")
    return _policy_tests(loaded.config, arguments.policy_tests) if arguments.policy_tests else 0


def _policy_tests(config: Config, file: str) -> int:
    cases = explain.cases_of(text_of(file), file)
    failing = explain.failing(config, cases)
    for case, explained in failing:
        what = case.name or explained.about or case.request.path
        rule = f" by {case.rule}" if case.rule else ""
        print(f"{what}: expected {case.expect}{rule}", *explained.text().splitlines(), sep="\n  ", file=sys.stderr)
    print(f"{file}: {len(cases) - len(failing)} of {len(cases)} as expected")
    return 1 if failing else 0


def _explain(arguments: argparse.Namespace) -> int:
    loaded = load_config(Path(arguments.config))
    request = explain.request_of(text_of(arguments.request), arguments.request)
    try:
        explained = explain.explain(loaded.config, request)
    except ConfigError as error:
        raise ConfigError(loaded.complete(error.problems)) from None
    print(json.dumps(explained.json()) if arguments.json else explained.text())
    return 0
