"""When it is sent: in order, ten at a time, again after a while, by one server of many, until it arrives or is given up."""

import json
import threading

import pytest
from conftest import NOON, SECOND, wait_for
from receiver import Courier, make_webhook, reply, sent, state, unused_port, without_jitter

import ticketapi

DAY = 86_400


def order(receiver):
    """Return the ids of the tickets that a receiver was told of."""
    return [message.json["data"]["id"] for message in receiver.messages]


def by_message(choose):
    """Return a behaviour that depends on the message."""
    choose.by_message = True
    return choose


# Order, and how many ------------------------------------------------------------------------------


def test_events_are_delivered_once_in_their_order(db, events, webhook, courier, receiver):
    events.add(*["ticket.created"] * 3)
    courier.go()
    assert sorted(order(receiver)) == [1, 2, 3]
    assert [(one["event_id"], one["status"], one["attempt"], one["status_code"]) for one in sent(db, webhook)] == [
        (number, "delivered", 1, 204) for number in (1, 2, 3)
    ]
    courier.go()
    assert len(receiver.messages) == 3


def test_they_are_begun_in_order_ten_at_a_time(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = receiver.hang
    events.add(*["ticket.created"] * 35)
    courier.turn(clock.now)
    courier.turn(clock.now)
    wait_for(lambda: receiver.waiting == 10)
    assert sorted(order(receiver)) == list(range(1, 11))
    receiver.released.set()
    courier.go()
    assert receiver.most == 10
    assert sorted(order(receiver)) == list(range(1, 36))
    firsts = [one["event_id"] for one in sent(db, webhook)]
    assert firsts == sorted(firsts)


def test_what_hangs_holds_up_no_other_webhook(db, events, receiver, courier, clock):
    """Beyond 40 tries each webhook still has one."""
    receiver.behaviour = by_message(lambda message: receiver.hang if "slow" in message.line else reply())
    slow = [make_webhook(db, f"{receiver.url}&slow={number}") for number in range(6)]
    quick = make_webhook(db, receiver.url)
    events.add(*["ticket.created"] * 20)
    courier.turn(clock.now)
    assert courier.under_way() <= ticketapi.MAX_TRIES + len(slow)
    wait_for(lambda: courier.turn(clock.now) or sum(one["status"] == "delivered" for one in sent(db, quick)) == 20)
    assert courier.under_way() >= ticketapi.MAX_TRIES
    assert {one["status"] for hook in slow for one in sent(db, hook)} == {"pending"}
    receiver.released.set()
    courier.go()
    assert all(len(sent(db, hook)) == 20 for hook in slow)


def test_a_webhook_gets_the_types_that_it_asked_for_alone(db, events, receiver, courier):
    hook = make_webhook(db, receiver.url, events=["ticket.deleted", "comment.created"])
    events.add("ticket.created", "ticket.deleted", "ticket.closed", "comment.created", "ticket.updated")
    courier.go()
    assert [one["type"] for one in sent(db, hook)] == ["ticket.deleted", "comment.created"]
    assert ticketapi.get_webhook(db, hook["id"])["position"] == 5


def test_a_webhook_is_told_of_what_comes_after_it_was_made(db, events, receiver, courier):
    events.add("ticket.created")
    hook = make_webhook(db, receiver.url)
    events.add("ticket.closed")
    courier.go()
    assert [one["event_id"] for one in sent(db, hook)] == [2]


def test_many_events_that_nobody_wants_are_passed_in_one_go(db, events, receiver, courier):
    hook = make_webhook(db, receiver.url, events=["ticket.deleted"])
    events.add(*["ticket.created"] * (3 * ticketapi.EVENTS_LOOK), "ticket.deleted")
    courier.go()
    assert [one["event_id"] for one in sent(db, hook)] == [3 * ticketapi.EVENTS_LOOK + 1]


def test_numbers_without_an_event_are_passed(db, events, webhook, courier):
    """A desk that is upgraded has numbers, but no log."""
    events.last = 500
    courier.go()
    assert ticketapi.get_webhook(db, webhook["id"])["position"] == 500


# Again --------------------------------------------------------------------------------------------


def test_tries_come_after_the_delays_and_then_no_more(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(500)
    events.add("ticket.created")
    courier.go()
    for number, seconds in enumerate(ticketapi.RETRIES, 1):
        assert len(receiver.messages) == number
        clock.advance(seconds - 1)
        courier.go()
        assert len(receiver.messages) == number
        [one] = sent(db, webhook)
        assert (one["status"], one["attempt"], one["error"]) == ("pending", number, "the answer was 500")
        clock.advance(1)
        courier.go()
    assert ticketapi.RETRIES == (5, 30, 120, 600, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
    clock.advance(30 * DAY)
    courier.go()
    assert len(receiver.messages) == 12
    [one] = sent(db, webhook)
    assert (one["status"], one["attempt"], one["next_at"]) == ("failed", 12, None)


def test_the_delays_vary_by_a_tenth(db, events, webhook, receiver, desk, clock):
    receiver.behaviour = reply(500)
    events.add("ticket.created")
    courier = Courier(desk, clock)
    courier.bits = lambda count: 2**count - 1  # for each message the highest
    courier.go()
    courier._close()
    wait = ticketapi.parse_time(sent(db, webhook)[0]["next_at"]) - clock.now
    assert 5.49 * SECOND < wait < 5.5 * SECOND


@pytest.mark.parametrize(
    ("header", "seconds"), [("60", 60), ("1", 5), ("Thu, 04 Dec 2025 12:10:00 GMT", 600), ("9999999", DAY)]
)
def test_retry_after_moves_the_next_try_back_but_never_forth(db, events, webhook, courier, receiver, clock, header, seconds):
    receiver.behaviour = reply(429, retry_after=header)
    events.add("ticket.created")
    courier.go()
    assert ticketapi.parse_time(sent(db, webhook)[0]["next_at"]) == NOON + seconds * SECOND


def test_a_delivery_that_arrives_late_is_delivered(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(503)
    events.add("ticket.created")
    courier.go()
    receiver.behaviour = reply(200)
    assert state(db, webhook)["failing_since"] == ticketapi.format_time(NOON)
    clock.advance(5)
    courier.go()
    [one] = sent(db, webhook)
    assert (one["status"], one["attempt"], one["status_code"], one["error"], one["next_at"]) == (
        "delivered",
        2,
        200,
        None,
        None,
    )
    assert state(db, webhook)["failing_since"] is None


def test_one_that_always_fails_holds_up_no_other(db, events, webhook, courier, receiver):
    receiver.behaviour = by_message(lambda message: reply(500 if message.json["data"]["id"] % 2 else 204))
    events.add(*["ticket.created"] * 60)
    courier.go()
    assert [one["event_id"] for one in sent(db, webhook) if one["status"] == "delivered"] == list(range(2, 61, 2))


def test_where_many_wait_one_a_minute_is_added(db, events, courier, clock, monkeypatch):
    """A receiver that is down for a day leaves few rows, and one that is back is found so within a minute."""
    monkeypatch.setattr(ticketapi, "KEPT_DELIVERIES", 20)
    hook = make_webhook(db, f"http://127.0.0.1:{unused_port()}/")
    events.add(*["ticket.created"] * 500)
    courier.go()
    assert len(sent(db, hook)) == 20
    for _ in range(600):
        clock.advance(10)
        courier.go()
    assert 20 + 40 < len(sent(db, hook)) <= 20 + 100


def test_one_that_is_back_gets_all_that_waited(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(500)
    events.add(*["ticket.created"] * 100)
    courier.go()
    clock.advance(5)
    receiver.behaviour = reply(200)
    courier.go()
    assert [one for one in sent(db, webhook) if one["status"] != "delivered"] == []
    assert len(sent(db, webhook)) == 100


# Off ----------------------------------------------------------------------------------------------


def test_410_turns_a_webhook_off_for_good(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(410)
    events.add("ticket.created")
    courier.go()
    events.add("ticket.created")
    clock.advance(DAY)
    courier.go()
    assert len(receiver.messages) == 1
    assert (state(db, webhook)["enabled"], state(db, webhook)["disabled"]) == (False, "it answered 410 Gone")
    assert sent(db, webhook)[0]["status"] == "failed"


def fail_for(seconds, courier, clock, events):
    """Let events come each hour, for some time."""
    for _ in range(int(seconds // 3600)):
        clock.advance(3600)
        events.add("ticket.created")
        courier.go()


def test_five_days_without_a_success_turn_it_off(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(500)
    events.add("ticket.created")
    courier.go()
    fail_for(5 * DAY - 3600, courier, clock, events)
    assert state(db, webhook)["enabled"]
    fail_for(7200, courier, clock, events)
    assert (state(db, webhook)["enabled"], state(db, webhook)["disabled"]) == (False, "no try has succeeded for 5 days")
    count = len(receiver.messages)
    fail_for(DAY, courier, clock, events)
    assert len(receiver.messages) == count


def test_turned_on_again_it_goes_on_where_it_stood(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(410)
    events.add("ticket.created")
    courier.go()
    receiver.behaviour = reply(200)
    events.add("ticket.closed")
    fields = ticketapi.read_webhook({"enabled": True}, False, is_new=False)
    changed = ticketapi.update_webhook(db, webhook["id"], fields, clock.now)
    assert (changed["enabled"], changed["disabled"], changed["failing_since"]) == (True, None, None)
    courier.go()
    assert [one["status"] for one in sent(db, webhook)] == ["failed", "delivered"]


def test_what_is_turned_off_by_hand_stays_so_until_it_is_turned_on(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(500)
    events.add("ticket.created")
    courier.go()
    ticketapi.update_webhook(db, webhook["id"], {"enabled": False}, clock.now)
    clock.advance(DAY)
    events.add("ticket.created")
    courier.go()
    assert len(receiver.messages) == 1
    receiver.behaviour = reply(200)
    ticketapi.update_webhook(db, webhook["id"], {"enabled": True}, clock.now)
    courier.go()
    assert [one["status"] for one in sent(db, webhook)] == ["delivered"] * 2


def test_one_that_falls_behind_the_log_goes_on_at_its_oldest_event_and_says_so(db, events, webhook, courier, receiver):
    ticketapi.update_webhook(db, webhook["id"], {"enabled": False}, NOON)
    events.kept = 5
    events.add(*["ticket.created"] * 20)
    ticketapi.update_webhook(db, webhook["id"], {"enabled": True}, NOON)
    courier.go()
    first, *rest = sent(db, webhook)
    assert (first["status"], first["error"]) == ("skipped", "events 1 to 15 had left the log before they could be sent")
    assert [(one["event_id"], one["status"]) for one in rest] == [(number, "delivered") for number in range(16, 21)]
    courier.go()
    assert len(sent(db, webhook)) == 6


# Who ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(desk, db, clock):
    """Two servers of one desk."""
    made = Courier(desk, clock), Courier(desk, clock)
    yield made
    for one in made:
        one._close()


def test_of_two_servers_one_delivers(db, events, webhook, two, receiver, clock):
    first, second = two
    receiver.behaviour = receiver.hang
    events.add(*["ticket.created"] * 30)
    first.turn(clock.now)
    for _ in range(19):
        clock.advance(1)
        second.turn(clock.now)
        assert (first.under_way(), second.under_way()) == (10, 0)
    receiver.released.set()
    first.go()
    second.go()
    assert sorted(order(receiver)) == list(range(1, 31))


def test_another_goes_on_where_one_died(db, events, webhook, two, receiver, clock):
    """What was under way is sent again, with the same id; nothing is left out."""
    first, second = two
    receiver.behaviour = receiver.hang
    events.add(*["ticket.created"] * 15)
    first.turn(clock.now)
    wait_for(lambda: receiver.waiting == 10)
    receiver.behaviour = reply(200)
    clock.advance(19)
    second.go()
    assert len(receiver.messages) == 10
    clock.advance(1)
    second.go()
    assert sorted(order(receiver)) == sorted([*range(1, 11), *range(1, 16)])
    ids = {message.headers["webhook-id"] for message in receiver.messages}
    assert len(ids) == 15
    assert [one["attempt"] for one in sent(db, webhook)] == [2] * 10 + [1] * 5


def test_a_claim_by_a_clock_that_was_wrong_holds_up_nobody(db, events, webhook, two, receiver, clock):
    first, second = two
    events.add("ticket.created")
    clock.now += 3600 * SECOND
    first.go()
    clock.now -= 3600 * SECOND
    events.add("ticket.created")
    second.go()
    assert order(receiver) == [1, 2]


def test_nothing_is_written_while_there_is_nothing_to_do(desk, db, events, webhook, courier, clock):
    """Else each second would throw away what readers remember."""
    events.add("ticket.created")
    courier.go()
    before = ticketapi.get_data_version(db)
    for _ in range(50):
        clock.advance(1)
        courier.turn(clock.now)
    assert ticketapi.get_data_version(db) == before


def test_what_another_server_works_on_costs_no_writing(db, events, webhook, two, receiver, clock):
    first, second = two
    receiver.behaviour = receiver.hang
    events.add(*["ticket.created"] * 30)
    first.turn(clock.now)
    before = ticketapi.get_data_version(db)
    for _ in range(15):
        clock.advance(1)
        first.turn(clock.now)
        second.turn(clock.now)
    assert ticketapi.get_data_version(db) == before
    receiver.released.set()


def test_a_webhook_that_is_deleted_while_a_try_is_under_way(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = receiver.hang
    events.add("ticket.created")
    courier.turn(clock.now)
    wait_for(lambda: receiver.waiting == 1)
    ticketapi.delete_webhook(db, webhook["id"])
    other = make_webhook(db, receiver.url)
    receiver.released.set()
    courier.go()
    assert other["id"] != webhook["id"]
    assert sent(db, other) == sent(db, webhook) == []


def test_what_is_done_is_kept_up_to_a_number(db, events, webhook, courier, receiver, monkeypatch):
    monkeypatch.setattr(ticketapi, "KEPT_DELIVERIES", 20)
    events.add(*["ticket.created"] * 70)
    courier.go()
    assert [one["event_id"] for one in sent(db, webhook)] == list(range(51, 71))


# The thread ---------------------------------------------------------------------------------------


@pytest.fixture
def running(desk, db, events):
    """Deliveries by their own thread and the real clock."""
    made = ticketapi.Deliveries(desk, ticketapi.Clock(), without_jitter)
    made.start()
    yield made
    made.stop()


def test_the_thread_delivers_without_being_asked(db, events, webhook, running, receiver):
    events.add(*["ticket.created"] * 50)
    wait_for(lambda: len(receiver.messages) == 50)
    wait_for(lambda: [one["status"] for one in sent(db, webhook)] == ["delivered"] * 50)
    running.stop()
    assert not running._thread.is_alive()


def test_a_stop_waits_for_answers_that_come_but_not_for_long(db, events, webhook, running, receiver):
    receiver.behaviour = receiver.hang
    events.add("ticket.created")
    wait_for(lambda: receiver.waiting == 1)
    threading.Timer(0.2, receiver.released.set).start()
    running.stop()
    assert [one["status"] for one in sent(db, webhook)] == ["delivered"]


def test_a_stop_leaves_what_hangs_to_be_sent_again(db, events, webhook, running, receiver):
    receiver.behaviour = receiver.hang
    events.add("ticket.created")
    wait_for(lambda: receiver.waiting == 1)
    running.stop(5)
    assert not running._thread.is_alive()
    [one] = sent(db, webhook)
    assert (one["status"], one["attempt"]) == ("pending", 1)


def test_a_failure_of_the_desk_loses_no_answer(db, events, webhook, running, receiver, caplog):
    """It is logged once, and what came of the tries is written as soon as that can be."""
    receiver.behaviour = receiver.hang
    events.add("ticket.created")
    wait_for(lambda: receiver.waiting == 1)
    whole, broken = running.turn, threading.Event()

    def fail(now):
        broken.set()
        raise ticketapi.TicketApiError("disk full")

    running.turn = fail
    receiver.released.set()
    assert broken.wait(5)
    wait_for(lambda: receiver.waiting == 0)
    running.turn = whole
    wait_for(lambda: [one["status"] for one in sent(db, webhook)] == ["delivered"])
    assert [record.message.count("disk full") for record in caplog.records] == [1]
    assert len(receiver.messages) == 1


def test_a_transaction_that_fails_is_made_again_with_the_same_answers(
    db, events, webhook, courier, receiver, clock, monkeypatch
):
    events.add("ticket.created")
    courier.turn(clock.now)
    wait_for(lambda: courier._replies)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ticketapi, "save_webhook", lambda *_: 1 / 0)
        courier.turn(clock.now)
    courier.go()
    assert [one["status"] for one in sent(db, webhook)] == ["delivered"]
    assert len(receiver.messages) == 1
    assert json.loads(receiver.messages[0].body)["type"] == "ticket.created"
