"""The desk's API with FastAPI and uvicorn, the usual way: python fastapi_app.py DATABASE."""

import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import uvicorn
from desk import CLOSED, OPEN, PER_PAGE, RATE, Database, Limiter, create_ticket, desk_stats, find_token, save_audit, ticket_page
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

app = FastAPI()
bearer = HTTPBearer(auto_error=False)
limiter = Limiter(RATE)
database, durable = Database(sys.argv[1]), Database(sys.argv[1], "FULL")


class User(BaseModel):
    """A ticket's customer."""

    id: int
    name: str
    email: str


class TopUser(User):
    """The customer with the most tickets."""

    tickets_count: int


class Ticket(BaseModel):
    """A ticket."""

    id: int
    subject: str
    content: str
    status: str
    status_id: int
    created_at: str
    updated_at: str
    user: User


class NewTicket(BaseModel):
    """What a client sends to make a ticket."""

    subject: str = Field(min_length=1, max_length=255)
    content: str = Field(min_length=1, max_length=10_000)
    user_id: int


class OneTicket(BaseModel):
    """A ticket by itself."""

    data: Ticket


class Links(BaseModel):
    """Where other pages are."""

    first: str
    last: str
    prev: str | None
    next: str | None


class Meta(BaseModel):
    """Where the page lies."""

    current_page: int
    from_: int | None = Field(alias="from")
    last_page: int
    links: list[dict[str, str | int | bool | None]]
    path: str
    per_page: int
    to: int | None
    total: int


class Page(BaseModel):
    """A page of tickets."""

    data: list[Ticket]
    links: Links
    meta: Meta


class Stats(BaseModel):
    """The figures of the desk."""

    total_tickets: int
    total_unprocessed_tickets: int
    top_user: TopUser | None
    most_recent_processed_at: str | None


def write_audit(request: Request, status: int, duration: float) -> None:
    """Write the audit row of a request."""
    token = getattr(request.state, "token", None)
    save_audit(
        database,
        token["user_id"] if token else None,
        token["id"] if token else None,
        request.method,
        request.url.path,
        status,
        request.client.host if request.client else None,
        request.headers.get("user-agent"),
        int(duration * 1000),
        request.url.query or None,
    )


@app.middleware("http")
async def audit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Write down every request before its answer is sent."""
    began = time.perf_counter()
    response = await call_next(request)
    await run_in_threadpool(write_audit, request, response.status_code, time.perf_counter() - began)
    return response


def authenticate(
    request: Request, response: Response, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    """Find the token of a request and take from its user's bucket."""
    token = find_token(database.connect(), credentials.credentials) if credentials else None
    if token is None:
        raise HTTPException(401, "Unauthenticated.")
    request.state.token = token
    allowed, headers = limiter.take(token["user_id"])
    if not allowed:
        raise HTTPException(429, "Too Many Attempts.", headers=headers)
    response.headers.update(headers)


def list_tickets(request: Request, status: int, page: int, per_page: int) -> dict[str, Any]:
    """Return a page of the tickets of a status."""
    db: sqlite3.Connection = database.connect()
    return ticket_page(db, status, str(request.url.replace(query="")), page, per_page)


PageNumber = Annotated[int, Query(ge=1)]


@app.get("/api/tickets/open", dependencies=[Depends(authenticate)], response_model=Page)
def open_tickets(request: Request, page: PageNumber = 1, per_page: int = PER_PAGE) -> dict[str, Any]:
    """Return open tickets, oldest first."""
    return list_tickets(request, OPEN, page, per_page)


@app.get("/api/tickets/closed", dependencies=[Depends(authenticate)], response_model=Page)
def closed_tickets(request: Request, page: PageNumber = 1, per_page: int = PER_PAGE) -> dict[str, Any]:
    """Return closed tickets, most recently closed first."""
    return list_tickets(request, CLOSED, page, per_page)


@app.post("/api/tickets", dependencies=[Depends(authenticate)], response_model=OneTicket, status_code=201)
def store_ticket(new: NewTicket, response: Response) -> dict[str, Any]:
    """Make a ticket."""
    ticket = create_ticket(durable, new.user_id, new.subject, new.content)
    response.headers["Location"] = f"/api/tickets/{ticket['id']}"
    return {"data": ticket}


@app.get("/api/stats", dependencies=[Depends(authenticate)], response_model=Stats)
def stats() -> dict[str, Any]:
    """Return the figures of the desk."""
    return desk_stats(database.connect())


def main() -> None:
    """Serve on a free port."""
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
    listener = config.bind_socket()
    print(f"Listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
