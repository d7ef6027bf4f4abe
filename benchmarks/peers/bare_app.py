"""A Waitress that makes tickets and does nothing else: python bare_app.py DATABASE. What no application around it can beat."""

import json
import logging
import sqlite3
import sys
from collections.abc import Callable, Iterable
from typing import Any

import rows
from waitress.server import create_server


def main() -> None:
    """Serve on a free port, with one worker thread."""
    db = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous = FULL")

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        fields = json.loads(environ["wsgi.input"].read())
        ticket = rows.write_ticket(db, fields["user_id"], fields["subject"], fields["content"])
        body = json.dumps({"data": ticket}).encode()
        start_response("201 Created", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    server = create_server(app, host="127.0.0.1", port=0, threads=1, asyncore_use_poll=True)
    print(f"Listening on http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
