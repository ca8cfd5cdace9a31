"""The admin API: what operators do with a gateway that runs, over HTTP. A file a resource."""

from tollhouse.admin.api import api
from tollhouse.admin.token import token_file

__all__ = ["api", "token_file"]
