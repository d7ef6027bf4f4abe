"""A token is shown once, known by its hash alone, and good for what it was made for until it expires or is revoked."""

import re
import string
import time
import zlib
from contextlib import closing

import pytest
from conftest import NOON, SECOND, queries_of

import ticketapi

LETTERS = set(string.ascii_letters + string.digits)
EMAIL = "ann@example.com"


def create(db, email=EMAIL, abilities=("read:tickets",), expires=0, now=NOON):
    """Create a token named `test` and return its record."""
    return ticketapi.create_token(db, email, "test", list(abilities), expires, now)


@pytest.fixture
def reader(desk, db):
    """A reader of the desk."""
    with closing(ticketapi.Readers(desk)) as readers:
        yield readers.get()


def authenticate(reader, record, now=NOON):
    """Present a token's secret, as a request does."""
    reader.refresh()
    return ticketapi.authenticate_token(reader, record["token"], now)


def last_used_at(db, record):
    """Return what the file says of a token's last use."""
    return db.execute("SELECT last_used_at FROM personal_access_tokens WHERE id = ?", (record["id"],)).fetchone()[0]


def note_use(desk, reader, record, now):
    """Present a token and note its use, as a request does."""
    ticketapi.note_token_use(reader, desk, authenticate(reader, record, now), now)


# What a token looks like --------------------------------------------------------------------------


def test_a_token_is_one_shell_word_that_scanners_recognise():
    texts = {ticketapi.new_token_text() for _ in range(500)}
    assert len(texts) == 500
    assert all(re.fullmatch(r"tkt_[0-9A-Za-z]{46}", text) for text in texts)
    assert {letter for text in texts for letter in text[4:44]} == LETTERS


def test_the_last_six_characters_are_the_crc_of_the_others():
    for _ in range(50):
        text = ticketapi.new_token_text()
        value = 0
        for letter in text[44:]:
            value = value * 62 + (string.digits + string.ascii_uppercase + string.ascii_lowercase).index(letter)
        assert value == zlib.crc32(text[:44].encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1] + ("a" if text[-1] != "a" else "b"),
        lambda text: text[:10] + ("a" if text[10] != "a" else "b") + text[11:],
        lambda text: text.swapcase(),
        lambda text: text[:-1],
        lambda text: text + "0",
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: "TKT_" + text[4:],
        lambda text: text[4:],
        lambda text: text[:20] + "é" + text[21:],
        lambda text: text[:20] + "\x00" + text[21:],
        lambda text: "",
        lambda text: "tkt_",
        lambda text: "x" * 100_000,
    ],
)
def test_what_has_no_valid_checksum_is_refused_without_a_query(db, reader, spoil):
    record = create(db)
    statements = queries_of(reader.db)
    assert ticketapi.authenticate_token(reader, spoil(record["token"]), NOON) is None
    assert statements == []


def test_a_token_that_nobody_made_is_refused_after_one_query_each_time_and_not_remembered(db, reader):
    create(db)
    text, statements = ticketapi.new_token_text(), queries_of(reader.db)
    for _ in range(2):
        assert ticketapi.authenticate_token(reader, text, NOON) is None
    assert len(statements) == 2
    assert reader.tokens == {}


# What a thread remembers --------------------------------------------------------------------------


def test_a_token_is_looked_up_once_while_the_desk_stays_as_it_is(db, reader):
    record = create(db)
    reader.refresh()
    statements = queries_of(reader.db)
    tokens = {ticketapi.authenticate_token(reader, record["token"], NOON + more) for more in range(5)}
    assert [token.id for token in tokens] == [record["id"]]
    assert len(statements) == 1
    assert record["token"] not in repr(reader.tokens)


def test_a_token_that_is_remembered_expires_to_the_microsecond(db, reader):
    record = create(db, expires=60)
    assert authenticate(reader, record)
    statements = queries_of(reader.db)
    end = NOON + 60 * SECOND
    assert ticketapi.authenticate_token(reader, record["token"], end - 1)
    assert ticketapi.authenticate_token(reader, record["token"], end) is None
    assert statements == []


def test_no_more_tokens_are_remembered_than_promised(db, reader):
    ticketapi.ensure_owner(db, EMAIL, NOON)
    texts = [ticketapi.new_token_text() for _ in range(ticketapi.MAX_CACHED_TOKENS + 5)]
    row = {"user_id": ticketapi.FIRST_OWNER_ID, "name": "n", "abilities": "[]", "expires_at": None}
    row["created_at"] = ticketapi.format_time(NOON)
    with ticketapi.transaction(db):
        for text in texts:
            ticketapi.insert_token(db, {**row, "token": ticketapi.hash_token(text)})
    assert all(ticketapi.authenticate_token(reader, text, NOON) for text in texts)
    assert len(reader.tokens) == ticketapi.MAX_CACHED_TOKENS
    assert ticketapi.authenticate_token(reader, texts[-1], NOON)


# What is kept -------------------------------------------------------------------------------------


def test_the_record_shows_what_was_made(db):
    record = create(db, abilities=["read:tickets", "write: everything"], expires=3600)
    assert list(record) == ["id", "user_id", "token", "name", "abilities", "expires_at", "created_at"]
    assert record["name"] == "test"
    assert record["abilities"] == ["read:tickets", "write: everything"]
    assert record["created_at"] == ticketapi.format_time(NOON)
    assert record["expires_at"] == ticketapi.format_time(NOON + 3600 * SECOND)


@pytest.mark.files
def test_the_files_hold_the_hash_and_never_the_secret(desk, db, reader):
    record = create(db)
    assert authenticate(reader, record)
    for moment in ("in the log", "in the file"):
        if moment == "in the file":
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        kept = b"".join(path.read_bytes() for path in desk.parent.iterdir())
        assert ticketapi.hash_token(record["token"]).encode() in kept, moment
        assert record["token"].encode() not in kept, moment
        assert record["token"][4:44].encode() not in kept, moment


def test_the_list_of_tokens_has_neither_secrets_nor_hashes(db):
    record = create(db)
    [row] = ticketapi.list_tokens(db)
    assert row["email"] == EMAIL
    assert "token" not in row.keys()  # noqa: SIM118  a Row has no `in` for its names
    assert not {record["token"], ticketapi.hash_token(record["token"])} & set(row)


def test_there_are_tokens_when_one_was_made(db):
    assert not ticketapi.has_tokens(db)
    create(db)
    assert ticketapi.has_tokens(db)


# Until when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "valid"), [(0, True), (59_999_999, True), (60_000_000, False), (60_000_001, False)])
def test_a_token_expires_to_the_microsecond(db, reader, after, valid):
    record = create(db, expires=60)
    assert (authenticate(reader, record, NOON + after) is not None) == valid


def test_a_token_without_expiry_is_good_for_ever(db, reader):
    record = create(db)
    assert record["expires_at"] is None
    assert authenticate(reader, record, NOON + 100 * 365 * 86_400 * SECOND)


def test_a_revoked_token_is_refused_at_once(db, reader):
    record, other = create(db), create(db)
    ticketapi.revoke_token(db, record["id"])
    assert authenticate(reader, record) is None
    assert authenticate(reader, other).id == other["id"]


@pytest.mark.parametrize("token_id", [0, 2, -1, 10**18])
def test_revoking_what_is_not_there_says_so(db, token_id):
    create(db)
    with pytest.raises(ticketapi.NotFound, match=f"no token has the id {token_id}; `token list` shows those there are"):
        ticketapi.revoke_token(db, token_id)
    assert len(ticketapi.list_tokens(db)) == 1


def test_the_id_of_a_revoked_token_is_not_given_out_again(db):
    record = create(db)
    ticketapi.revoke_token(db, record["id"])
    assert create(db)["id"] > record["id"]


def test_pruning_deletes_expired_tokens_alone(db):
    lives = {0: create(db), 60: create(db, expires=60), 61: create(db, expires=61), 30: create(db, expires=30)}
    assert ticketapi.prune_tokens(db, NOON + 60 * SECOND) == 2
    assert [row["id"] for row in ticketapi.list_tokens(db)] == [lives[0]["id"], lives[61]["id"]]
    assert ticketapi.prune_tokens(db, NOON + 60 * SECOND) == 0


# For what, and whose ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("abilities", "may"),
    [
        (["read:tickets"], True),
        (["*"], True),
        (["write:tickets", "read:tickets"], True),
        (["write:tickets", "*"], True),
        (["write:tickets"], False),
        (["read:tickets2"], False),
        (["READ:TICKETS"], False),
        (["read:*"], False),
        ([], False),
    ],
)
def test_a_token_may_do_what_its_abilities_say(db, reader, abilities, may):
    assert authenticate(reader, create(db, abilities=abilities)).can("read:tickets") is may


def test_an_owner_is_created_once(db):
    one, other = create(db), create(db)
    assert one["user_id"] == other["user_id"]
    assert db.execute("SELECT count(*) FROM users").fetchone()[0] == 1
    assert ticketapi.find_user(db, one["user_id"])["name"] == "ann"
    assert create(db, email="bob@example.com")["user_id"] == one["user_id"] + 1


def test_tokens_without_a_user_belong_to_one_operator(db):
    one, other = (create(db, email=ticketapi.Settings().user) for _ in range(2))
    assert one["user_id"] == other["user_id"]
    assert ticketapi.find_user(db, one["user_id"])["name"] == "Operator"


def test_an_owner_is_not_a_customer(db):
    ticketapi.generate_tickets(db, 50, NOON, 1)
    owner = create(db)["user_id"]
    assert owner > db.execute("SELECT max(user_id) FROM tickets").fetchone()[0]
    assert owner >= ticketapi.FIRST_OWNER_ID


def test_a_customer_who_owns_a_token_is_two_users(db):
    ticketapi.generate_tickets(db, 50, NOON, 1)
    email = ticketapi.find_user(db, 3)["email"]
    owner = create(db, email=email)["user_id"]
    assert owner >= ticketapi.FIRST_OWNER_ID
    assert create(db, email=email.upper())["user_id"] == owner == ticketapi.find_owner(db, email)
    assert (ticketapi.find_user(db, 3)["email"], ticketapi.find_user(db, owner)["email"]) == (email, email)


# Last used ----------------------------------------------------------------------------------------


def test_the_first_use_is_noted(desk, db, reader):
    record = create(db)
    assert last_used_at(db, record) is None
    note_use(desk, reader, record, NOON + 5)
    assert last_used_at(db, record) == ticketapi.format_time(NOON + 5)


@pytest.mark.parametrize(("after", "noted"), [(0, False), (1, False), (59_999_999, False), (60_000_000, True), (10**9, True)])
def test_a_use_is_noted_at_most_once_a_minute(desk, db, reader, after, noted, engine):
    record = create(db)
    note_use(desk, reader, record, NOON)
    version = db.execute("PRAGMA data_version").fetchone()[0]
    note_use(desk, reader, record, NOON + after)
    assert last_used_at(db, record) == ticketapi.format_time(NOON + after * noted)
    is_told = noted and engine == "sqlite"  # other servers of a database need not look again for it
    assert (db.execute("PRAGMA data_version").fetchone()[0] != version) == is_told


@pytest.mark.files
def test_a_use_is_given_up_without_waiting_while_the_desk_is_locked(desk, db, reader):
    record = create(db)
    with closing(ticketapi.connect(desk)) as other:
        with ticketapi.transaction(other):
            begun = time.monotonic()
            note_use(desk, reader, record, NOON)
            assert time.monotonic() - begun < 1
        assert last_used_at(db, record) is None
    note_use(desk, reader, record, NOON + 1)
    assert last_used_at(db, record) == ticketapi.format_time(NOON + 1)


@pytest.mark.files
def test_while_the_wal_is_long_no_use_is_noted_as_the_commit_might_bring_all_of_it_into_the_file(desk, db, reader, monkeypatch):
    record = create(db)
    monkeypatch.setattr(ticketapi, "LONG_WAL", 200_000)
    with closing(ticketapi.connect(desk, ticketapi.READER)) as other, ticketapi.snapshot(other):
        ticketapi.count_tickets(other, ticketapi.OPEN)  # who reads what was before keeps it from being brought in
        ticketapi.generate_tickets(db, 400, NOON, seed=1)
        note_use(desk, reader, record, NOON)
        assert last_used_at(db, record) is None
    monkeypatch.setattr(ticketapi, "WAL_KEPT", 0)
    ticketapi.shrink_wal(desk, ticketapi.MAX_ID)
    note_use(desk, reader, record, NOON + SECOND)
    assert last_used_at(db, record) == ticketapi.format_time(NOON + SECOND)


def test_a_use_is_noted_without_waiting_or_given_up_while_somebody_has_the_row_of_the_token(desk, db, reader):
    record = create(db)
    with closing(ticketapi.connect(desk)) as other, ticketapi.transaction(other):
        ticketapi.touch_token(other, record["id"], ticketapi.format_time(NOON - 1))
        begun = time.monotonic()
        ticketapi.set_busy_timeout(reader.db, 20)
        note_use(desk, reader, record, NOON)
        assert time.monotonic() - begun < 1
    assert last_used_at(db, record) == ticketapi.format_time(NOON - 1)


def test_the_use_of_a_token_revoked_meanwhile_brings_nothing_back(desk, db, reader):
    record = create(db)
    token = authenticate(reader, record)
    ticketapi.revoke_token(db, record["id"])
    ticketapi.note_token_use(reader, desk, token, NOON)
    assert ticketapi.list_tokens(db) == []
