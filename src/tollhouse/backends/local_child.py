"""The local model's process: `python -m tollhouse.backends.local_child`, spawned by `backends.local`.

Rule: it serves one model on a loopback port of its own choosing, to whoever knows the key, and lives no longer than
the gateway: its standard input ending means that the gateway is gone. It reads one JSON line, writes one JSON line,
`{"address": "http://127.0.0.1:PORT"}` or `{"error": "..."}`, and then nothing more there.
"""

import json
import os
import sys
from typing import Any

from tollhouse.net.child_lines import only_ours, say

__all__ = ["main"]


def main() -> int:
    answers = only_ours()
    try:
        wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    except ValueError:
        return 2
    try:
        server = _serve(wanted)
    except ImportError as error:
        say(answers, error=f"xllamacpp cannot be loaded: {error}")
        return 3
    except (RuntimeError, ValueError, OSError) as error:
        say(answers, error=f"the model cannot be loaded: {error}")
        return 4
    say(answers, address=server.listening_address)
    while sys.stdin.buffer.read(65536):
        pass
    # The server's threads may be in the middle of a token; nobody is left to wait for them.
    os._exit(0)


def _serve(wanted: dict[str, Any]) -> Any:
    import xllamacpp  # noqa: PLC0415  (the extra `local`)

    threads = wanted["threads"]
    parallel = wanted["parallel"]
    params = xllamacpp.CommonParams()
    params.model.path = wanted["model"]
    params.model_alias = {wanted["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [wanted["key"]]
    params.cors_origins = ""
    params.n_parallel = parallel
    params.n_ctx = wanted["context"] * parallel
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = parallel + 2  # each open connection holds one
    params.cache_ram_mib = 0  # 8 GiB of old prompts unless told
    params.endpoint_slots = False
    params.endpoint_props = False
    params.endpoint_metrics = False
    params.ui = False
    params.offline = True
    params.verbosity = 0
    return xllamacpp.Server(params)


if __name__ == "__main__":
    sys.exit(main())
