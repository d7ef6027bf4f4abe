"""Every request is counted, and /metrics shows it in the text format of Prometheus: to this machine, or to a token for it."""

import re
import sqlite3
import sys
from contextlib import closing
from itertools import pairwise

import pytest
from conftest import NOON, SECOND, wait_for
from prometheus_client.parser import text_string_to_metric_families

import ticketapi

MINUTE = 60 * SECOND
ELSEWHERE = "192.0.2.1"
PROXY_HEADERS = [
    ("Forwarded", "for=127.0.0.1"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "localhost"),
    ("X-Forwarded-Server", "proxy"),
    ("x-forwarded-anything", ""),
    ("X-Real-IP", "127.0.0.1"),
    ("Via", "1.1 proxy"),
]


def families(answer):
    """Return what the official parser finds in an answer, by name."""
    assert answer.status == 200
    return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}


def samples(answer, name):
    """Return the values of one metric by their labels, without the names of these."""
    found = [one for family in families(answer).values() for one in family.samples if one.name == name]
    return {tuple(one.labels.values()): one.value for one in found}


def make_token(db, *abilities):
    """Return the text of a new token."""
    return ticketapi.create_token(db, "monitor@example.com", "test", list(abilities), 0, NOON)["token"]


# The format --------------------------------------------------------------------------------------


def test_it_is_the_text_format_0_0_4_and_each_metric_has_help_and_type(api, token):
    api.get("/api/stats", token=token)
    answer = api.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.body.endswith(b"\n")
    assert "etag" not in answer.headers
    found = families(answer)
    assert len(found) >= 14
    for name, family in found.items():
        assert family.documentation, name
        assert family.type in ("counter", "gauge", "histogram")
        assert name.startswith("ticketapi_") or name == "process_start_time_seconds"


def test_no_sample_comes_twice(api, token):
    for path in ("/api/stats", "/api/nope", "/up"):
        api.get(path, token=token)
    lines = [line.rpartition(" ")[0] for line in api.get("/metrics").body.decode().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)) > 30


def test_it_tells_which_versions_run_and_since_when(api, clock):
    clock.advance(100)
    answer = api.get("/metrics")
    [build] = families(answer)["ticketapi_build_info"].samples
    python = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    assert build.labels == {"version": ticketapi.__version__, "python": python, "sqlite": sqlite3.sqlite_version}
    assert build.value == 1
    assert samples(answer, "process_start_time_seconds") == {(): NOON / SECOND}


# Requests ----------------------------------------------------------------------------------------


def test_requests_of_every_kind_are_counted_by_route_and_status(make_api, token):
    api = make_api(rate=2)
    api.get("/up")
    api.request("HEAD", "/up/")
    for _ in range(3):
        api.get("/api/stats", token=token)
    api.get("/api/stats")
    api.get("/api/nope", token=token)
    api.get("/nope")
    api.request("POST", "/api/stats", token=token)
    api.request("OPTIONS", "/api/stats")
    api.request("OPTIONS", "/api/stats", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "GET"})
    api.get("/metrics", address=ELSEWHERE)
    assert samples(api.get("/metrics"), "ticketapi_http_requests_total") == {
        ("metrics", "401"): 1,
        ("none", "200"): 1,
        ("none", "204"): 1,
        ("none", "404"): 2,
        ("none", "405"): 1,
        ("stats", "200"): 2,
        ("stats", "401"): 1,
        ("stats", "429"): 1,
        ("up", "200"): 2,
    }


def test_a_crash_and_a_failing_database_are_counted_with_their_status(api, db, token):
    db.execute("DELETE FROM ticket_counts")
    api.get("/api/stats", token=token)
    db.execute("DROP TABLE ticket_counts")
    api.get("/api/stats", token=token)
    counted = samples(api.get("/metrics"), "ticketapi_http_requests_total")
    assert counted["stats", "500"] == counted["stats", "503"] == 1


def test_what_clients_make_up_becomes_no_label(api):
    for path in ("/api/one", "/two", "/api/users/x/tickets", '/a"b\\c', "/%0A"):
        api.get(path)
        api.request("DELETE", path)
    assert samples(api.get("/metrics"), "ticketapi_http_requests_total") == {("none", "404"): 10}


def durations(traffic, route="stats"):
    """Return the histogram of a route as it is written: pairs of bound and count, sum, count."""
    [family] = [metric for metric in ticketapi.request_metrics(traffic) if metric.kind == "histogram"]
    mine = [(suffix, labels.get("le"), value) for suffix, labels, value in family.samples if labels["route"] == route]
    buckets = [(float(bound), value) for suffix, bound, value in mine if suffix == "_bucket"]
    return buckets, mine[-2][2], mine[-1][2]


def test_a_histogram_holds_in_each_bucket_what_took_no_longer():
    traffic, seconds = ticketapi.Traffic(NOON), [0.0, 0.0001, 0.00011, 0.005, 0.2, 0.9, 1.0, 1.1, 60.0]
    for one in seconds:
        traffic.count("stats", 200, NOON, one)
    buckets, total, count = durations(traffic)
    assert [bound for bound, _ in buckets] == [*ticketapi.DURATIONS, float("inf")]
    assert [(bound, sum(one <= bound for one in seconds)) for bound, _ in buckets] == buckets
    assert total == pytest.approx(sum(seconds))
    assert count == buckets[-1][1] == len(seconds)


def test_a_histogram_reads_as_one_whose_buckets_grow(api, clock, token):
    api.get("/api/stats", token=token)
    found = samples(api.get("/metrics"), "ticketapi_http_request_duration_seconds_bucket")
    counts = [value for (route, _), value in found.items() if route == "stats"]
    assert all(after >= before for before, after in pairwise(counts))
    assert counts[-1] == 1


def test_what_the_parser_refuses_is_counted_by_status():
    traffic = ticketapi.Traffic(NOON)
    for status in (431, 400, 400):
        traffic.refuse(status)
    [refusals] = [metric for metric in ticketapi.request_metrics(traffic) if metric.name == "ticketapi_http_refusals_total"]
    assert refusals.samples == [("", {"status": "400"}, 2), ("", {"status": "431"}, 1)]


# The desk and its files --------------------------------------------------------------------------


def test_tickets_are_counted_by_status(api, db):
    assert samples(api.get("/metrics"), "ticketapi_tickets") == {("open",): 0, ("closed",): 0}
    ticketapi.generate_tickets(db, 7, NOON, seed=1)
    ticketapi.process_tickets(db, 2, NOON)
    assert samples(api.get("/metrics"), "ticketapi_tickets") == {("open",): 5, ("closed",): 2}


@pytest.mark.parametrize(
    "damage",
    [
        lambda db, desk: db.execute("DROP TABLE ticket_counts"),
        pytest.param(lambda db, desk: desk.unlink(), marks=pytest.mark.files),
    ],
)
def test_a_desk_that_cannot_be_read_hides_no_other_figure(api, db, desk, damage):
    damage(db, desk)
    answer = api.get("/metrics")
    assert samples(answer, "ticketapi_tickets") == {}
    assert samples(answer, "ticketapi_audit_failures_total") == {(): 0}


def test_an_audit_log_that_cannot_be_written_shows(api):
    with closing(ticketapi.connect(api.settings.audit_db)) as log:
        log.execute("ALTER TABLE api_audits RENAME TO hidden")
        api.get("/api/nope")
        api.get("/api/nope")  # in the same second, in which it is not tried again
        answer = api.get("/metrics")
        assert samples(answer, "ticketapi_audit_failures_total") == {(): 1}
        assert samples(answer, "ticketapi_audit_rows_waiting") == {(): 2}
        log.execute("ALTER TABLE hidden RENAME TO api_audits")
    api.clock.advance(1)
    api.get("/api/nope")
    answer = api.get("/metrics")
    assert samples(answer, "ticketapi_audit_rows_waiting") == {(): 0}
    assert samples(answer, "ticketapi_audit_rows_lost_total") == {(): 0}


def test_rows_that_are_lost_are_counted(api, monkeypatch):
    monkeypatch.setattr(ticketapi, "MAX_WAITING_AUDITS", 3)
    with closing(ticketapi.connect(api.settings.audit_db)) as log:
        log.execute("ALTER TABLE api_audits RENAME TO hidden")
        for _ in range(5):
            api.clock.advance(1)
            api.get("/api/nope")
        answer = api.get("/metrics")
        log.execute("ALTER TABLE hidden RENAME TO api_audits")
    assert samples(answer, "ticketapi_audit_rows_lost_total") == {(): 2}


@pytest.mark.files
def test_the_size_of_both_write_ahead_logs_is_shown(api, db, desk):
    ticketapi.generate_tickets(db, 7, NOON, seed=1)
    api.get("/api/nope")
    sizes = {
        part: path.with_name(path.name + "-wal").stat().st_size for part, path in (("desk", desk), ("audit", api.audit.path))
    }
    assert min(sizes.values()) > 0
    assert samples(api.get("/metrics"), "ticketapi_wal_bytes") == {(part,): size for part, size in sizes.items()}


def test_a_write_ahead_log_that_is_not_there_has_no_bytes(tmp_path):
    [metric] = ticketapi.wal_metrics(ticketapi.Settings(db=tmp_path / "none.db"))
    assert [value for _, _, value in metric.samples] == [0, 0]


@pytest.mark.files
def test_a_desk_behind_a_link_has_the_write_ahead_log_of_the_real_one(api, db, desk, tmp_path):
    ticketapi.generate_tickets(db, 7, NOON, seed=1)
    link = tmp_path / "link.db"
    link.symlink_to(desk)
    [metric] = ticketapi.wal_metrics(ticketapi.Settings(db=link))
    assert metric.samples[0][2] > 0


# The scheduler -----------------------------------------------------------------------------------


def test_jobs_are_shown_with_their_runs_and_their_lateness(make_api, clock):
    jobs = [
        ticketapi.Job("generate", 60, lambda now: ticketapi.Outcome({"generated": 1})),
        ticketapi.Job("process", 60, lambda now: 1 / 0),
        ticketapi.Job("prune", ticketapi.DAY, lambda now: None),
    ]
    api = make_api(ticketapi.Schedule(jobs, clock.monotonic()))
    for moment in (NOON, NOON + MINUTE, NOON + 2 * MINUTE + SECOND // 4):
        ticketapi.run_due_jobs(jobs, moment)
    answer = api.get("/metrics")
    assert samples(answer, "ticketapi_scheduler_runs_total") == {
        ("generate", "ok"): 2,
        ("generate", "failed"): 0,
        ("process", "ok"): 0,
        ("process", "failed"): 2,
        ("prune", "ok"): 0,
        ("prune", "failed"): 0,
    }
    ran = (NOON + 2 * MINUTE) / SECOND + 0.25
    assert samples(answer, "ticketapi_scheduler_last_run_timestamp_seconds") == {("generate",): ran, ("process",): ran}
    assert samples(answer, "ticketapi_scheduler_lateness_seconds") == {("generate",): 0.25, ("process",): 0.25}


def test_a_scheduler_that_does_not_go_round_shows(make_api, clock):
    api = make_api(ticketapi.Schedule([ticketapi.Job("generate", 60, lambda now: None)], clock.monotonic()))
    assert samples(api.get("/metrics"), "ticketapi_scheduler_alive") == {(): 1}
    clock.advance(ticketapi.HEARTBEAT_SECONDS)
    assert samples(api.get("/metrics"), "ticketapi_scheduler_alive") == {(): 0}


# Who may see it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_it_is_open_to_this_machine(api, address):
    here = {"Host": "localhost"}
    for path in ("/metrics", "/metrics/"):
        assert api.get(path, address=address, headers=here).status == 200
        assert api.request("HEAD", path, address=address, headers=here).body == b""
    assert api.get("/metrics", address=address, token="wrong").status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            (name, 200)
            for name in ("localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:9", "127.9.9.9", "[::1]", "[::1]:8000")
        ),
        *((name, 401) for name in ("evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.0", "[::2]", "desk.test:8000")),
    ],
)
def test_a_page_that_was_bound_anew_to_this_machine_cannot_read_it(api, host, status):
    assert api.get("/metrics", headers={"Host": host}).status == status


@pytest.mark.parametrize("address", [ELSEWHERE, "10.0.0.1", "::2", "::ffff:192.0.2.1", "fe80::1%lo", "localhost", "", "127.1"])
def test_it_is_shut_to_others_and_to_who_has_no_address(api, address):
    answer = api.get("/metrics", address=address)
    assert (answer.status, answer.json) == (401, {"message": "Unauthenticated."})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("name", "value"), PROXY_HEADERS)
def test_it_is_shut_to_what_a_proxy_on_this_machine_passes_on(api, name, value):
    assert api.get("/metrics", headers={name: value}).status == 401
    assert api.get("/metrics").status == 200


def test_from_elsewhere_it_takes_a_token_with_the_ability(api, db):
    for abilities, status in [(["read:metrics"], 200), (["*"], 200), (["read:tickets", "read:audits"], 403), ([], 403)]:
        answer = api.get("/metrics", token=make_token(db, *abilities), address=ELSEWHERE)
        assert answer.status == status
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="read:metrics"'


def test_it_draws_from_no_limit(make_api, db):
    api, text = make_api(rate=2), make_token(db, "read:metrics", "read:tickets")
    assert {api.get("/metrics", token=text, address=ELSEWHERE).status for _ in range(5)} == {200}
    assert {api.get("/metrics", token="wrong", address=ELSEWHERE).status for _ in range(ticketapi.STRANGERS_RATE + 1)} == {401}
    assert api.get("/api/stats", token=text, address=ELSEWHERE).headers["x-ratelimit-remaining"] == "1"
    assert api.get("/api/stats", token="wrong", address=ELSEWHERE).status == 401


def test_it_is_not_audited_and_no_page_of_another_origin_may_read_it(api):
    answer = api.get("/metrics", headers={"Origin": "https://a.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    answer = api.request("OPTIONS", "/metrics", headers=asked)
    assert (answer.status, answer.headers["allow"]) == (200, "GET, HEAD")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert api.audits() == []


def test_no_other_route_is_open_without_a_token(api):
    closed = {(route.method, route.rule) for route in api.app.routes if route.config.get("ability") is not None}
    assert {route.rule for route in api.app.routes if route.config.get("open_locally")} == {"/metrics"}
    assert len(closed) > 20
    for number, (method, rule) in enumerate(closed - {("GET", "/metrics")}):  # more than a stranger may ask for
        assert api.request(method, re.sub(r"<.*?>", "1", rule), address=f"192.0.2.{number}").status == 401


# A real server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--trusted-proxy", "127.0.0.1"), ("--threads", "2")])
def test_a_server_is_open_to_this_machine_but_not_by_way_of_a_proxy(serve, arguments):
    served = serve("--no-scheduler", *arguments)
    assert served.get("/metrics").status == 200
    for name, value in PROXY_HEADERS:
        assert served.get("/metrics", headers={name: value}).status == 401, name
    assert served.get("/metrics?Via:=1").status == 200
    assert served.get("/metrics", headers={"Forwarded-By": "a", "Referer": "http://a/\tvia: b"}).status == 200
    assert served.stop()[0] == 0


def test_a_server_counts_what_its_parser_refuses_and_what_it_answers(serve, tmp_path):
    served = serve("--no-scheduler")
    assert served.get("/up", headers={"X-Long": "a" * 17_000}).status == 431
    assert served.get("/up", headers={"Content-Length": "70000"}).status == 413
    assert served.get("/api/nope").status == 404
    answer = served.get("/metrics")
    assert samples(answer, "ticketapi_http_refusals_total") == {("413",): 1, ("431",): 1}
    assert samples(answer, "ticketapi_http_requests_total") == {("none", "404"): 1}
    assert samples(answer, "process_start_time_seconds")[()] > NOON / SECOND


def test_a_server_shows_the_runs_of_its_jobs(serve):
    served = serve("--generate-every", "1s", "--process-every", "0")

    def runs():
        return samples(served.get("/metrics"), "ticketapi_scheduler_runs_total")

    wait_for(lambda: runs().get(("generate", "ok")))
    assert runs().keys() == {("generate", "ok"), ("generate", "failed")}
