"""The audit log keeps what was asked, as JSON of texts in at most 4,096 characters, and never a secret."""

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ticketapi

SECRET = "hunter2-correct-horse"
TOKEN = "tkt_" + "Ab3" * 15 + "z"
CAP = 4096
FORM = "application/x-www-form-urlencoded"

characters = st.characters(exclude_categories=())  # half surrogate pairs too: JSON may hold them
texts = st.text(characters, max_size=40)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(texts, inner, max_size=6)),
    max_leaves=60,
)


def kept(raw, content_type="application/json"):
    """Return what the audit log keeps of a body, as text."""
    if isinstance(raw, str):
        raw = raw.encode()
    return ticketapi.audit_payload(ticketapi.parse_body(raw, content_type))


def leaves(value):
    """Yield every value of a JSON document that holds no others."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def assert_sound(text):
    """Check that a payload is null, or a JSON object of texts that SQLite can keep, and not too long."""
    if text is None:
        return
    assert len(text) <= CAP
    payload = json.loads(text)
    assert isinstance(payload, dict)
    assert all(isinstance(leaf, str) for leaf in leaves(payload))
    text.encode()


# Keys ---------------------------------------------------------------------------------------------

KEYS = [
    "authorization",
    "Authorization",
    "proxy-authorization",
    "token",
    "TOKEN",
    "access_token",
    "csrfToken",
    "password",
    "PassWord",
    "password_confirmation",
    "user[password]",
    "secret",
    "clientSecret",
    "key",
    "api_key",
    "X-API-KEY",
    "apikey",
    "cookie",
    "Set-Cookie",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda entry: entry,
        lambda entry: {"a": entry},
        lambda entry: {"a": {"b": {"c": {"d": entry}}}},
        lambda entry: {"a": [entry]},
        lambda entry: {"a": [[1, [entry]], "x"]},
        lambda entry: [entry],
        lambda entry: [[entry], entry],
    ],
)
def test_the_value_of_a_secret_key_is_redacted_at_any_depth(key, wrap):
    text = kept(json.dumps(wrap({key: SECRET, "page": "2"})))
    assert SECRET not in text
    assert json.dumps({key: "[redacted]", "page": "2"}, separators=(",", ":")) in text


@pytest.mark.parametrize("value", [SECRET, [SECRET], {"x": SECRET}, [[{"x": [SECRET]}]], 12345678, None, True])
def test_whatever_a_secret_key_holds_is_redacted_whole(value):
    assert json.loads(kept(json.dumps({"password": value}))) == {"password": "[redacted]"}


@pytest.mark.parametrize("key", ["page", "per_page", "q", "pass", "auth", "user", "ключ", ""])
def test_other_keys_keep_their_values(key):
    assert json.loads(kept(json.dumps({key: "2"}))) == {key: "2"}


# Tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [TOKEN, f"Bearer {TOKEN}", f"{TOKEN}{TOKEN}", f"a{TOKEN}b", f'"{TOKEN}"', f"\n{TOKEN}\n"])
def test_a_text_shaped_like_a_token_is_redacted_wherever_it_stands(text):
    for document in (text, {"q": text}, {text: "q"}, [text], {"a": [{"b": [text]}]}, {"a": {text: {text: text}}}):
        payload = kept(json.dumps(document))
        assert TOKEN not in payload
        assert TOKEN[4:44] not in payload
        assert "[redacted]" in payload
        assert_sound(payload)


@pytest.mark.parametrize("before", ["\t", "\n", "\\", '"', "\u2028", "\x00", "\x1f", "\\\t", "é", "😀", "\ud800"])
def test_a_token_after_any_character_is_redacted_and_the_rest_is_kept(before):
    for rest in (TOKEN, TOKEN[1:]):
        for document in ({"q": before + rest}, {before + rest: "q"}):
            payload = ticketapi.audit_payload(document)
            assert_sound(payload)
            [(key, value)] = json.loads(payload).items()
            assert TOKEN not in key + value
    only_looks_so = {"q": before + TOKEN[1:]}
    expected = {"q": (before + TOKEN[1:]).replace("\ud800", "?")}
    assert json.loads(ticketapi.audit_payload(only_looks_so)) == expected


SANCTUM = ("1|" + "a" * 40, "12|" + "Ab3" * 16, "9" * 20 + "|" + "z" * 60, "12%7C" + "b" * 40, "12%7c" + "b" * 40)


@pytest.mark.parametrize("text", SANCTUM)
def test_a_token_of_sanctum_is_redacted_at_any_place_and_never_left_in_half(text):
    secret = text[-40:]
    for start in ("", "x ", "y" * (CAP - 60), *("y" * (CAP + cut) for cut in range(-60, 60, 7))):
        for body in (json.dumps({"note": start + text + " end"}), json.dumps([start + text])):
            assert secret[:9] not in (kept(body) or "")
        assert secret[:9] not in (kept(f"note={start}{text}", FORM) or "")
    assert ticketapi.redact_text(f"a {text} b").endswith("[redacted] b")
    for limit in range(0, 80, 3):
        assert secret[:9] not in ticketapi.cut_text(f"{'x' * 30}{text}", limit)[:limit]


@pytest.mark.parametrize("text", ["12|" + "a" * 39, "|" + "a" * 40, "12 | " + "a" * 40, "1" * 4000])
def test_what_is_no_token_of_sanctum_stays(text):
    assert ticketapi.redact_text(text) == text


@pytest.mark.parametrize("text", ["tkt_", "tkt_short", "kt_" + "a" * 46, "TKT_" + "a" * 46])
def test_what_is_not_shaped_like_a_token_is_kept(text):
    assert json.loads(kept(json.dumps({"q": text}))) == {"q": text}


@given(values, st.integers(0, 3))
def test_no_token_gets_through_in_any_document(value, place):
    document = [{"q": TOKEN, "v": value}, {"v": value, TOKEN: 1}, [value, [TOKEN]], {"v": [value, {"x": [TOKEN + "x"]}]}][place]
    payload = ticketapi.audit_payload(document)
    assert TOKEN not in payload
    assert_sound(payload)


# Size and shape -----------------------------------------------------------------------------------


@given(values)
@example([["\\"] * 4000])
@example({"q": '"' * 4080})
@example({"q": '"' * 5000})
@example({"q": "\\" * 2040 + "x"})
@example({"q": "\x00" * 700})
@example({"q": "😀" * 5000})
@example({"x" * 5000: "y"})
@example({"\ud800": "\udfff" * 3000})
@example({"q": [float("nan"), float("inf"), 10**400]})
@example({str(n): str(n) for n in range(2000)})
def test_a_payload_is_always_a_json_object_of_texts_within_its_size(value):
    assert_sound(ticketapi.audit_payload(value))


@pytest.mark.parametrize("length", [CAP - 9, CAP - 8, CAP - 7, 5000, 100_000])
def test_what_fits_is_kept_whole_and_what_does_not_is_cut(length):
    text = ticketapi.audit_payload({"q": "x" * length})
    assert_sound(text)
    if length <= CAP - len('{"q":""}'):
        assert json.loads(text) == {"q": "x" * length}
    else:
        [(name, start)] = json.loads(text).items()
        assert name == "truncated"
        assert start.startswith('{"q":"xxx')


@pytest.mark.parametrize("count", range(480, 720, 20))
def test_of_many_small_lists_none_is_left_out_without_a_word(count):
    payload = json.loads(kept(json.dumps([[1]] * count)))
    assert payload == {"body": [["1"]] * count} or list(payload) == ["truncated"]


class CountedList(list):
    """A list that counts what is read of it."""

    read = 0

    def __iter__(self):
        for item in list.__iter__(self):
            self.read += 1
            yield item


class CountedDict(dict):
    """A dict that counts what is read of it."""

    read = 0

    def items(self):
        for item in dict.items(self):
            self.read += 1
            yield item


@pytest.mark.parametrize(
    "value",
    [
        CountedList([0] * 10**6),
        CountedList([[]] * 10**6),
        CountedList([{}] * 10**6),
        CountedList(["\u202e"] * 10**6),
        CountedDict(dict.fromkeys(map(str, range(10**6)), 0)),
        CountedDict({f"password{n}": "x" * 10**4 for n in range(10**4)}),
    ],
)
def test_no_more_of_a_value_is_read_than_is_kept(value):
    assert_sound(ticketapi.audit_payload(value))
    assert 0 < value.read <= CAP


def test_no_more_of_a_form_is_read_than_is_kept():
    [(name, fields)] = ticketapi.parse_form("&".join(f"key{n}=1" for n in range(10**5))).items()
    assert name == "truncated"
    assert 0 < len(fields) <= CAP / 7
    assert list(fields)[:-1] == [f"key{n}" for n in range(len(fields) - 1)]


@pytest.mark.parametrize("size", range(CAP - 60, CAP + 120, 3))
def test_a_form_cut_anywhere_leaves_no_secret(size):
    for form in (
        "q=" + "x" * size + f"&password={SECRET}&q={TOKEN}",
        "x" * size + TOKEN + "=1&password=" + SECRET,
        "q=" + TOKEN * 99,
    ):
        text = kept(form, FORM) or ""
        assert "tkt_A" not in text
        assert SECRET[:5] not in text


@pytest.mark.parametrize("limit", [255, 1024])
@pytest.mark.parametrize(
    "text", ["\u202e" * 20_000, TOKEN * 400, "x" * 230 + TOKEN, "x" * 1000 + TOKEN + "y" * 900, TOKEN[:20] * 300]
)
def test_a_text_is_cut_before_it_is_looked_at_and_no_token_is_left_in_half(text, limit):
    cut = ticketapi.cut_text(text, limit)
    assert len(cut) <= limit + len(TOKEN) + len("[redacted]")
    assert TOKEN[:30] not in cut
    assert ticketapi.redact_text(text).startswith(cut.removesuffix("[redacted]"))


@pytest.mark.parametrize("padding", range(3980, 4100, 7))
def test_a_secret_at_the_cut_is_not_left_in_half(padding):
    for cut in (padding, padding // 2):
        for document in ({"q": "x" * cut + TOKEN + "y" * CAP}, {"q": "x" * cut, "password": SECRET, "r": "y" * CAP}):
            text = ticketapi.audit_payload(document)
            assert_sound(text)
            assert "tkt_A" not in text
            assert "hunter" not in text


@pytest.mark.parametrize("nothing", [None, {}, [], ""])
def test_nothing_is_null(nothing):
    assert ticketapi.audit_payload(nothing) is None


@pytest.mark.parametrize(
    ("raw", "payload"),
    [
        ('{"page":2,"all":true,"x":null,"f":1.5}', {"page": "2", "all": "true", "x": "null", "f": "1.5"}),
        ('[1,"a"]', {"body": ["1", "a"]}),
        ('"text"', {"body": "text"}),
        ("5", {"body": "5"}),
        ('{"a":{"b":[1,{"c":2}]}}', {"a": {"b": ["1", {"c": "2"}]}}),
        ('{"name":"Zoë 😀"}', {"name": "Zoë 😀"}),
        ('{"half":"\\ud83d"}', {"half": "?"}),
        ('{"\\udc00":"x"}', {"?": "x"}),
    ],
)
def test_a_json_body_is_kept_as_an_object_of_texts(raw, payload):
    assert json.loads(kept(raw)) == payload


@pytest.mark.parametrize("depth", [50, 500, 5000, 100_000])
@pytest.mark.parametrize(
    "nest",
    [lambda n: "[" * n + "]" * n, lambda n: '{"a":' * n + "1" + "}" * n, lambda n: "[" * n],
    ids=["lists", "objects", "open"],
)
def test_a_body_nested_however_deep_is_told_in_a_line(nest, depth):
    assert_sound(kept(nest(depth)))


def test_a_document_nested_too_deeply_leaves_no_content():
    value = [SECRET]
    for _ in range(200_000):
        value = [value]
    text = ticketapi.audit_payload(value)
    assert json.loads(text) == {"unreadable": "nested too deeply"}


# Other bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [FORM, f"{FORM}; charset=UTF-8"])
def test_a_form_is_kept_without_its_secrets(content_type):
    payload = json.loads(kept(f"page=2&password={SECRET}&empty=&q=a+b%26&user%5Btoken%5D={SECRET}", content_type))
    redacted = "[redacted]"
    assert payload == {"page": "2", "password": redacted, "empty": "", "q": "a b&", "user[token]": redacted}


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"password": SECRET}),
        json.dumps({"user": {"api_key": SECRET}, "page": 2}),
        json.dumps([{"token": SECRET}]),
        " \n" + json.dumps({"password": SECRET}),
        f'{{"password": "{SECRET}"',
    ],
)
def test_json_that_is_sent_as_a_form_leaves_no_secret(raw):
    assert SECRET not in kept(raw, FORM)  # `curl -d '{"password": …}'` sends it so


@pytest.mark.parametrize("raw", [f"q={TOKEN}", TOKEN, f"{TOKEN}=1", f"q=Bearer+{TOKEN}", "q=" + TOKEN.replace("A", "%41")])
def test_a_form_leaves_no_token(raw):
    payload = kept(raw, FORM)
    assert TOKEN not in payload
    assert_sound(payload)


@given(
    st.binary(max_size=200), st.sampled_from([FORM, "application/json", "", "multipart/form-data; boundary=x", "text/plain"])
)
def test_any_body_is_kept_soundly(raw, content_type):
    assert_sound(kept(raw, content_type))


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (f'{{"password": "{SECRET}"', "application/json"),
        (f"password={SECRET}", "application/json"),
        (f"password={SECRET}", ""),
        (f"password: {SECRET}", "text/plain"),
        (f'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n{SECRET}\r\n--x--', "multipart/form-data; boundary=x"),
        (f"<password>{SECRET}</password>", "application/xml"),
        (b"\xff\xfe\x00" + SECRET.encode(), "application/octet-stream"),
        (SECRET + "9" * 5000, "application/json"),
    ],
)
def test_a_body_that_cannot_be_read_leaves_its_length_alone(raw, content_type):
    assert json.loads(kept(raw, content_type)) == {"unreadable": f"{len(raw)} bytes"}


def test_a_body_of_nothing_is_null():
    assert kept(b"") is kept(b"", FORM) is None


# The file -----------------------------------------------------------------------------------------


def audit_row(**more):
    """Return the row of a request."""
    row = dict.fromkeys(("user_id", "token_id", "route_name", "user_agent", "query", "request_body", "request_id"))
    row |= {"method": "GET", "path": "api/stats", "status_code": 200, "ip_address": "127.0.0.1", "duration_ms": 0}
    return row | {"created_at": ticketapi.format_time(0)} | more


def count_audits(path):
    """Return how many rows another connection sees in an audit log."""
    with closing(ticketapi.connect(path)) as other:
        return other.execute("SELECT count(*) FROM api_audits").fetchone()[0]


def test_a_recorded_row_is_in_the_file_at_once(desk):
    with closing(ticketapi.AuditLog(desk)) as audit, closing(ticketapi.connect(desk)) as other:
        audit.record(audit_row(query=ticketapi.audit_payload({"q": "\ud800 😀 \x00"})), 0.0)
        [row] = other.execute("SELECT * FROM api_audits")
        assert row["path"] == "api/stats"
        assert json.loads(row["query"]) == {"q": "? 😀 \x00"}


def test_a_row_that_cannot_be_written_is_counted_and_logged(desk, caplog):
    with closing(ticketapi.AuditLog(desk)) as audit:
        audit.record(audit_row(method=None), 0.0)
        audit.record(audit_row(), 0.0)
        audit.record(audit_row(method=None), 0.0)
        assert audit.lost == 2
        assert count_audits(desk) == 1
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.partition(": NOT NULL")[0].partition(": null value")[0] for line in lines] == [
        f"audit rows lost, {n} so far: {desk}" for n in (1, 2)
    ]


@pytest.mark.files
def test_a_row_that_cannot_be_written_while_the_log_is_gone_raises_nothing(desk, caplog):
    audit = ticketapi.AuditLog(desk)
    audit.close()
    audit.record(audit_row(), 0.0)
    assert (audit.failures, audit.lost) == (1, 0)
    assert "audit rows wait in memory" in caplog.text


def test_grouped_rows_wait_for_their_commit_and_come_in_their_order(desk):
    with closing(ticketapi.AuditLog(desk, grouped=True)) as audit:
        for number in range(3):
            audit.record(audit_row(path=f"api/{number}"), 0.0)
        assert count_audits(desk) == 0
        audit.commit(0.0)
        audit.commit(0.0)
        with closing(ticketapi.connect(desk)) as other:
            paths = [path for (path,) in other.execute("SELECT path FROM api_audits ORDER BY id")]
    assert paths == ["api/0", "api/1", "api/2"]


@pytest.mark.parametrize("wrong", [{"method": None}, {"duration_ms": 2**63}, {"path": "\ud800"}, {"created_at": "today"}])
@pytest.mark.parametrize("places", [[0], [1], [2], [0, 1], [0, 2], [0, 1, 2]])
def test_a_row_of_a_group_that_cannot_be_written_takes_no_other_with_it(desk, caplog, wrong, places):
    with closing(ticketapi.AuditLog(desk, grouped=True)) as audit:
        for number in range(3):
            audit.record(audit_row(user_id=number, **(wrong if number in places else {})), 0.0)
        audit.commit(0.0)
        audit.record(audit_row(user_id=3), 0.0)
        audit.commit(0.0)
        assert audit.lost == len(places)
    with closing(ticketapi.connect(desk)) as other:
        kept = [user_id for (user_id,) in other.execute("SELECT user_id FROM api_audits ORDER BY id")]
    assert kept == [number for number in range(4) if number not in places]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"audit rows lost, {len(places)} so far: {desk}: ")


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_log_that_fails_while_a_group_is_taken_apart_has_each_row_once_in_the_end(desk, monkeypatch, after):
    insert, alone = ticketapi.insert_audits, []

    def failing(db, rows):
        alone.extend(rows if len(rows) == 1 else ())
        if len(rows) == 1 and len(alone) == after + 1:
            raise sqlite3.OperationalError("database or disk is full")
        insert(db, rows)

    with closing(ticketapi.AuditLog(desk, grouped=True)) as audit:
        for number in range(4):
            audit.record(audit_row(user_id=number, **({"path": None} if number == 1 else {})), 0.0)
        monkeypatch.setattr(ticketapi, "insert_audits", failing)
        audit.commit(0.0)
        assert audit.waiting == 4 - after
        audit.commit(10.0)
        assert (audit.waiting, audit.lost) == (0, 1)
    with closing(ticketapi.connect(desk, ticketapi.LOG_READER)) as db:
        assert [row["user_id"] for row in ticketapi.list_audits(db, 1, 100, ticketapi.AuditFilter(), 100)] == [0, 2, 3]
