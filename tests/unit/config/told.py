"""What is said of a configuration."""

from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.build import validate


def read(text: str) -> Config:
    """Raises ConfigError."""
    return parse(text, "tollhouse.yaml", {}).config


def problems(text: str) -> list[str]:
    """Found while it is read, each as place and message."""
    try:
        read(text)
    except ConfigError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


def problems_built(text: str) -> list[str]:
    """Also those that show when it is built."""
    try:
        validate(read(text))
    except ConfigError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []
