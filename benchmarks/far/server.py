"""The server, in a process of its own: `python -m benchmarks.far.server FILE MILLISECONDS`.

It prints its address, and ends when its input does.
"""

import sys
import time
from pathlib import Path

from tests.support.servers import HttpServer, Request

BUCKET, KEY, SMALL = "bucket", "model.safetensors", "small.safetensors"


def main() -> None:
    """Serve a file, and a small one beside it, with a pause before each answer."""
    path, pause = Path(sys.argv[1]), float(sys.argv[2]) / 1000
    server = HttpServer()
    server.files[f"/{BUCKET}/{KEY}"] = path.read_bytes()
    server.files[f"/{BUCKET}/{SMALL}"] = path.with_name(SMALL).read_bytes()

    def wait(_: Request) -> None:
        time.sleep(pause)

    server.fault = wait
    print(server.url, flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
