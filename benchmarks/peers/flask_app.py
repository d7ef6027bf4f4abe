"""The desk's API with Flask and Waitress, the usual way: python flask_app.py DATABASE."""

import logging
import sys
import time

from desk import CLOSED, OPEN, PER_PAGE, RATE, Database, Limiter, create_ticket, desk_stats, find_token, save_audit, ticket_page
from flask import Flask, Response, abort, g, jsonify, request
from waitress.server import create_server
from werkzeug.exceptions import HTTPException

app = Flask(__name__)
app.json.sort_keys = False
limiter = Limiter(RATE)
database, durable = Database(sys.argv[1]), Database(sys.argv[1], "FULL")


@app.before_request
def authenticate() -> None:
    """Find the token of a request and take from its user's bucket."""
    g.began, g.token, g.headers = time.perf_counter(), None, {}
    authorization = request.authorization
    if authorization and authorization.type == "bearer" and authorization.token:
        g.token = find_token(database.connect(), authorization.token)
    if g.token is None:
        abort(401, "Unauthenticated.")
    allowed, g.headers = limiter.take(g.token["user_id"])
    if not allowed:
        abort(429, "Too Many Attempts.")


@app.after_request
def audit(response: Response) -> Response:
    """Add the limit's headers and write the request down before its answer is sent."""
    response.headers.update(g.headers)
    save_audit(
        database,
        g.token["user_id"] if g.token else None,
        g.token["id"] if g.token else None,
        request.method,
        request.path,
        response.status_code,
        request.remote_addr,
        request.headers.get("User-Agent"),
        int((time.perf_counter() - g.began) * 1000),
        request.query_string.decode() or None,
    )
    return response


@app.errorhandler(HTTPException)
def show_error(error: HTTPException) -> tuple[Response, int]:
    """Answer errors in JSON."""
    return jsonify(message=error.description), error.code or 500


def list_tickets(status: int) -> Response:
    """Return a page of the tickets of a status."""
    page = max(1, request.args.get("page", 1, type=int))
    per_page = request.args.get("per_page", PER_PAGE, type=int)
    return jsonify(ticket_page(database.connect(), status, request.base_url, page, per_page))


@app.get("/api/tickets/open")
def open_tickets() -> Response:
    """Return open tickets, oldest first."""
    return list_tickets(OPEN)


@app.get("/api/tickets/closed")
def closed_tickets() -> Response:
    """Return closed tickets, most recently closed first."""
    return list_tickets(CLOSED)


@app.post("/api/tickets")
def store_ticket() -> tuple[Response, int, dict[str, str]]:
    """Make a ticket."""
    fields = request.get_json()
    subject, content, user_id = (fields.get(name) for name in ("subject", "content", "user_id"))
    if not (isinstance(subject, str) and 0 < len(subject) <= 255 and isinstance(content, str) and 0 < len(content) <= 10_000):
        abort(422, "The subject or content field is not valid.")
    ticket = create_ticket(durable, user_id, subject, content)
    return jsonify(data=ticket), 201, {"Location": f"/api/tickets/{ticket['id']}"}


@app.get("/api/stats")
def stats() -> Response:
    """Return the figures of the desk."""
    return jsonify(desk_stats(database.connect()))


def main() -> None:
    """Serve on a free port."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of every request that waits
    server = create_server(app, host="127.0.0.1", port=0)
    print(f"Listening on http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
