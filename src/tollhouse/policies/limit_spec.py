"""What a limit says in a configuration: so much of something in a window, or so many at once.

Rule: a limit is about one thing, and a setting that could have no effect is an error.
"""

from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tollhouse.core.spec import Duration, Spec
from tollhouse.policies.limit_headers import Style
from tollhouse.policies.whose import WHOSE, checked_per

__all__ = ["LimitSpec"]

_PER: Final = tuple(WHOSE)
_UNITS: Final = ("requests", "calls", "tokens", "input_tokens", "output_tokens", "usd", "concurrent")


def _per(value: str) -> str:
    return checked_per(value, _PER)


class LimitSpec(Spec):
    """So much in a window, or so many at once, for each of something."""

    per: Annotated[str, AfterValidator(_per)] = Field(
        description="user, key, org, team, agent, model, tool, server, route, ip (IPv6: its /64), or a CEL expression",
        examples=["user", "model", 'request.headers["x-team"]'],
    )
    requests: int | None = Field(default=None, ge=1, description="whatever arrives, MCP's lists and pings included")
    calls: int | None = Field(default=None, ge=1, description="calls of models and tools")
    tokens: int | None = Field(default=None, ge=1, description="tokens of models, in and out")
    input_tokens: int | None = Field(default=None, ge=1, description="tokens of prompts, those from caches included")
    output_tokens: int | None = Field(default=None, ge=1, description="tokens of answers, thoughts included")
    usd: Decimal | None = Field(
        default=None, ge=Decimal("0.000001"), le=1_000_000, allow_inf_nan=False, description="what models cost"
    )
    concurrent: int | None = Field(default=None, ge=1, description="calls at the same time; on a route requests")
    window: Duration | None = Field(
        default=None, gt=0.0, le=86400.0 * 31, description="the time in which so much comes back; not of `concurrent`"
    )
    burst: int | None = Field(default=None, ge=1, description="how many at once; default: all of them")
    name: str = Field(
        default="", max_length=64, pattern=r"^[A-Za-z0-9_.:-]*$", description="in headers, metrics and errors"
    )
    headers: Style = Field(
        default="off",
        description="whether answers that are let through say what is left: draft (the header RateLimit), dialect "
        "(headers of OpenAI's or Anthropic's, by what the caller speaks), off",
    )
    on_store_failure: Literal["local", "deny", "allow"] = Field(
        default="deny",
        description="what happens while a shared `state` cannot be asked: deny answers 503, local lets each worker "
        "have its share of the rate, allow counts nothing",
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        if isinstance(value, dict) and "on_error" in value:
            raise ValueError("`on_error` is called `on_store_failure`")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [unit for unit in _UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise ValueError(f"a limit has exactly one of {', '.join(f'`{unit}`' for unit in _UNITS)}")
        if self.unit == "concurrent":
            for name in ("window", "burst"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` has no effect with `concurrent`, which is at any time; leave it out")
            if self.on_store_failure == "local":
                raise ValueError("`concurrent` has no share for each worker; write `on_store_failure: deny` or `allow`")
        elif self.window is None:
            raise ValueError("needs a `window`: the time in which so much comes back")
        if self.usd is not None and self.burst is not None:
            raise ValueError("`burst` has no effect with `usd`; leave it out")
        return self

    @property
    def unit(self) -> str:
        return next(unit for unit in _UNITS if getattr(self, unit) is not None)

    @property
    def amount(self) -> int:
        """In units that are counted: of money a millionth of a dollar."""
        value = getattr(self, self.unit)
        return int(value * 1_000_000) if isinstance(value, Decimal) else int(value)
