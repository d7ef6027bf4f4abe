"""Webhooks are made, listed, changed, tested and deleted; what is wrong is said of each field in Laravel's words."""

from contextlib import closing

import pytest
from conftest import NOON
from receiver import make_webhook, reply, sent, state

import ticketapi


def refuse(given, **more):
    """Return what is said of each field."""
    with pytest.raises(ticketapi.InvalidFields) as caught:
        ticketapi.read_webhook(given, True, **more)
    return caught.value.errors


def test_a_webhook_has_all_types_of_events_and_the_name_of_its_host_by_default(db, events):
    made = make_webhook(db, "http://127.0.0.1:9/x", NOON)
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made == {
        "id": 1,
        "user_id": None,
        "name": "127.0.0.1",
        "url": "http://127.0.0.1:9/x",
        "disabled": None,
        "failing_since": None,
        "waiting": 0,
        "created_at": ticketapi.format_time(NOON),
        "updated_at": ticketapi.format_time(NOON),
        "events": list(ticketapi.EVENT_TYPES),
        "enabled": True,
    }
    assert state(db, made) == made
    assert list(ticketapi.EVENT_TYPES) == [
        "ticket.created",
        "ticket.updated",
        "ticket.closed",
        "ticket.reopened",
        "ticket.deleted",
        "comment.created",
    ]


@pytest.mark.parametrize(
    ("given", "errors"),
    [
        ({}, {"url": ["The url field is required."]}),
        ({"url": None}, {"url": ["The url field is required."]}),
        ({"url": ""}, {"url": ["The url field is required."]}),
        ({"url": 7}, {"url": ["The url field must be a string."]}),
        ({"url": "nonsense"}, {"url": ["The url field must be a valid URL."]}),
        ({"url": "http://127.0.0.1/", "events": "ticket.created"}, {"events": ["The events field must be an array."]}),
        ({"url": "http://127.0.0.1/", "events": []}, {"events": ["The events field is required."]}),
        ({"url": "http://127.0.0.1/", "events": ["ticket.created", "x"]}, {"events": ["The selected events is invalid."]}),
        ({"url": "http://127.0.0.1/", "events": [[]]}, {"events": ["The selected events is invalid."]}),
        ({"url": "http://127.0.0.1/", "name": 7}, {"name": ["The name field must be a string."]}),
        (
            {"url": "http://127.0.0.1/", "name": "x" * 256},
            {"name": ["The name field must not be greater than 255 characters."]},
        ),
        ({"url": "http://127.0.0.1/", "enabled": "maybe"}, {"enabled": ["The enabled field must be true or false."]}),
        (
            {"name": [], "events": 1, "enabled": 3},
            {
                "url": ["The url field is required."],
                "name": ["The name field must be a string."],
                "events": ["The events field must be an array."],
                "enabled": ["The enabled field must be true or false."],
            },
        ),
    ],
)
def test_what_is_wrong_is_said_of_each_field(given, errors):
    assert refuse(given) == errors


def test_only_what_is_given_is_changed(db, events, clock):
    made = make_webhook(db, "http://127.0.0.1/", events=["ticket.created"], name="one")
    fields = ticketapi.read_webhook({"name": " two ", "events": None}, False, is_new=False)
    changed = ticketapi.update_webhook(db, made["id"], fields, clock.now)
    made.pop("secret")
    assert changed == {**made, "name": "two", "updated_at": ticketapi.format_time(clock.now)}
    assert state(db, made) == changed


def test_there_are_no_more_than_a_hundred(db, events, monkeypatch):
    monkeypatch.setattr(ticketapi, "MAX_WEBHOOKS", 3)
    for _ in range(3):
        make_webhook(db, "http://127.0.0.1/")
    with pytest.raises(ticketapi.InvalidFields, match="The desk has 3 webhooks"):
        make_webhook(db, "http://127.0.0.1/")


def test_no_id_is_given_twice(db, events):
    first = make_webhook(db, "http://127.0.0.1/")
    ticketapi.delete_webhook(db, first["id"])
    assert make_webhook(db, "http://127.0.0.1/")["id"] == first["id"] + 1


def test_what_is_not_there_is_said(db, events):
    for operation in (
        lambda: ticketapi.get_webhook(db, 7),
        lambda: ticketapi.update_webhook(db, 7, {}, NOON),
        lambda: ticketapi.delete_webhook(db, 7),
        lambda: ticketapi.add_test(db, 7, NOON, begin=False),
        lambda: ticketapi.resend_delivery(db, 7, 1, NOON),
    ):
        with pytest.raises(ticketapi.NotFound):
            operation()


def test_a_test_is_sent_at_once_and_its_outcome_told(db, events, webhook, receiver):
    made = ticketapi.send_test(db, webhook["id"], ticketapi.Clock())
    assert (made["type"], made["status"], made["status_code"], made["event_id"]) == ("webhook.test", "delivered", 204, None)
    assert receiver.messages[0].json["data"] == {"webhook": {**state(db, webhook)}}
    receiver.behaviour = reply(500)
    made = ticketapi.send_test(db, webhook["id"], ticketapi.Clock())
    assert (made["status"], made["error"], made["next_at"]) == ("failed", "the answer was 500", None)
    assert state(db, webhook)["failing_since"] is None
    assert [one["status"] for one in sent(db, webhook)] == ["delivered", "failed"]


def test_a_test_that_a_server_is_to_send_is_due_at_once(db, events, webhook, courier, receiver, clock):
    _, delivery = ticketapi.add_test(db, webhook["id"], clock.now, begin=False)
    assert ticketapi.delivery_resource(delivery)["status"] == "pending"
    receiver.behaviour = reply(500)
    courier.go()
    assert [one["status"] for one in sent(db, webhook)] == ["failed"]


def test_a_delivery_can_be_sent_again_with_the_same_id_and_body(db, events, webhook, courier, receiver, clock):
    events.add("ticket.created")
    courier.go()
    [one] = sent(db, webhook)
    again = ticketapi.resend_delivery(db, webhook["id"], one["id"], clock.now)
    assert again["status"] == "pending"
    courier.go()
    first, second = receiver.messages
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert [(each["status"], each["attempt"]) for each in sent(db, webhook)] == [("delivered", 1)]


def test_what_was_never_sent_cannot_be_sent_again(db, events, webhook, courier, clock):
    events.kept = 1
    events.add(*["ticket.created"] * 5)
    courier.go()
    skipped = sent(db, webhook)[0]
    for delivery_id in (skipped["id"], 999):
        with pytest.raises(ticketapi.NotFound):
            ticketapi.resend_delivery(db, webhook["id"], delivery_id, clock.now)


@pytest.mark.files
def test_in_a_copy_of_the_desk_they_are_turned_off(db, desk, events, tmp_path):
    made = make_webhook(db, "http://127.0.0.1/")
    ticketapi.generate_tickets(db, 1, NOON, 1)
    target = tmp_path / "copy.db"
    ticketapi.copy_desk(ticketapi.Settings(db=desk), target, ticketapi.silent)
    with closing(ticketapi.open_database(target, "desk")) as copy:
        row = ticketapi.get_webhook(copy, made["id"])
    assert (row["enabled"], row["disabled"], row["secret"]) == (0, "it came with a copy of the desk", made["secret"])
    assert state(db, made)["enabled"]


def test_deliveries_are_read_page_by_page_newest_first(db, events, webhook, courier):
    events.add(*["ticket.created"] * 25)
    courier.go()
    below, found = ticketapi.MAX_ID, []
    while page := ticketapi.list_deliveries(db, webhook["id"], below, 10):
        found += [row["event_id"] for row in page]
        below = page[-1]["id"]
    assert found == list(range(25, 0, -1))
