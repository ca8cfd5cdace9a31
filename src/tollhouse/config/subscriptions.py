"""The `subscriptions` section: seats that could be bought in the place of paying for each call."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from tollhouse.core.spec import Spec

__all__ = ["SubscriptionSpec"]


class SubscriptionSpec(Spec):
    """A seat that somebody sells."""

    name: str = Field(min_length=1, max_length=64, description="of it, in reports")
    usd: Decimal = Field(gt=0, le=1_000_000, allow_inf_nan=False, description="what one seat costs, for `per`")
    per: Literal["month", "year"] = Field(default="month", description="the time that `usd` is for")
    models: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        min_length=1, description="what a seat may use: names of models as they answer, with *"
    )
    covers: int | None = Field(
        default=None, ge=1, description="tokens of these models, in and out, that a seat has in that time; absent: any"
    )
