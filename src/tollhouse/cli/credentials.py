"""`tollhouse signing-keys`, `hash-password` and `admin-token`: what the gateway itself proves things with."""

import argparse
import sys
from getpass import getpass

from tollhouse import admin
from tollhouse.cli.command import Commands, config_option, config_path
from tollhouse.config.load import load_config
from tollhouse.gateway import signing_keys
from tollhouse.wire.password_hash import hash_password

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add(
        "signing-keys", _signing_keys, "Show, rotate and drop the keys that the auth provider signs tokens with."
    )
    what = "rotate: the next key signs as soon as verifiers have it; drop: a key that others may know, with its tokens"
    sub.add_argument("action", choices=["list", "rotate", "drop"], help=what)
    sub.add_argument("kid", nargs="?", help="drop: which key")
    sub.add_argument(
        "--secret", action="store_true", help="rotate: instead the secret that refresh tokens and nonces are made with"
    )
    config_option(sub)

    commands.add(
        "hash-password", _hash_password, "Hash a password from standard input, for a user of the auth provider."
    )

    sub = commands.add("admin-token", _admin_token, "Say which file has the token of the admin API.")
    config_option(sub)


def _signing_keys(arguments: argparse.Namespace) -> int:
    if arguments.secret and arguments.action != "rotate":
        print("`--secret` is for `rotate` alone", file=sys.stderr)
        return 2
    action = "rotate-secret" if arguments.secret else arguments.action
    return signing_keys.run(load_config(config_path(arguments.config)).config, action, arguments.kid, print)


def _hash_password(_: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        password = getpass("password: ")
        if getpass("again: ") != password:
            print("the two are not the same", file=sys.stderr)
            return 1
    else:
        try:
            password = sys.stdin.readline().rstrip("\r\n")
        except UnicodeDecodeError:
            print("the password is not UTF-8", file=sys.stderr)
            return 1
    try:
        print(hash_password(password))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _admin_token(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config)).config
    spec = config.server.admin
    if spec is None or spec.keys:
        why = "there is no admin API" if spec is None else "operators show the keys in `server.admin.keys`"
        print(f"{why}, and so there is no token", file=sys.stderr)
        return 1
    print(admin.token_file(config))
    return 0
