"""Where nothing may be sent: what is not public, over the API, by whatever spelling, and also when a name is turned round."""

import time

import pytest
from conftest import NOON
from receiver import Courier, reply, sent

import ticketapi

NEVER = ["169.254.169.254", "fe80::1", "fe80::1%lo", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "0.0.0.0", "::"]
NEVER += ["224.0.0.1", "ff02::1", "2002:a9fe:a9fe::1"]
PRIVATE = ["127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "100.64.0.1", "::1", "fc00::1", "fd00:ec2::254"]
PRIVATE += ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1", "fec0::1", "198.18.0.1"]
PRIVATE += ["192.0.2.1", "2001:db8::1", "255.255.255.255", "240.0.0.1", "64:ff9b:1::808:808", "3fff::1"]
PRIVATE += ["192.88.99.1", "192.0.0.8", "192.0.0.9"]
PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
SPELLINGS = ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "localhost", "LOCALHOST", "127.0.0.1."]
SPELLINGS += ["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0", "0.0.0.0", "169.254.169.254", "[::]"]


def leading_to(*addresses):
    """Return a resolver that gives addresses for any name."""
    return lambda host, port, seconds: list(addresses)


def refusal(url, private=False, resolve=ticketapi.resolve_host):
    """Return what is said of a URL, or nothing."""
    try:
        ticketapi.read_webhook({"url": url}, private, resolve=resolve)
    except ticketapi.InvalidFields as error:
        assert list(error.errors) == ["url"]
        return error.errors["url"][0]
    return ""


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_for_nobody(address):
    assert not ticketapi.may_send_to(address, private=False)
    assert not ticketapi.may_send_to(address, private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_ones_are_for_the_command_line_alone(address):
    assert not ticketapi.may_send_to(address, private=False)
    assert ticketapi.may_send_to(address, private=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_ones_are_for_all(address):
    assert ticketapi.may_send_to(address, private=False)


@pytest.mark.parametrize(
    "host", ["[2000::1]x", "[2000::1].example.com:80", "x[2000::1]", "[2000::1", "example.com:80:80", "a:b@example.com"]
)
def test_what_is_no_host_is_no_url(host):
    assert refusal(f"http://{host}/", resolve=leading_to("8.8.8.8")) == "The url field must be a valid URL."


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_this_machine_gets_through(host):
    assert refusal(f"http://{host}/")


def test_a_name_with_one_address_that_is_not_public_is_refused():
    assert refusal("http://example.com/", resolve=leading_to("8.8.8.8")) == ""
    found = refusal("http://example.com/", resolve=leading_to("8.8.8.8", "10.0.0.1"))
    assert found == "The url field must lead to a public address: 10.0.0.1 is not a public address."


def test_a_name_without_an_address_is_refused():
    assert refusal("http://nowhere.invalid/") == "The url field must lead to a public address: nowhere.invalid has no address."


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com",
        "//example.com/",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://@example.com/",
        "http://example.com/#part",
        "http://example.com/#",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:port/",
        "http://exa mple.com/",
        "http://example.com/a b",
        "http://example.com/\r\nX-Header: 1",
        "http://example.com/\tx",
        "http://example.com\\@127.0.0.1/",
        "http://127.0.0.1\\.example.com/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://münchen.de/",
        "http://example.com/ü",
        "http://example.com/" + "x" * 2000,
    ],
)
def test_what_is_no_plain_url_of_http_is_refused_before_anything_is_looked_up(url):
    def resolve(*_):
        raise AssertionError

    assert refusal(url, resolve=resolve) == "The url field must be a valid URL."


@pytest.mark.parametrize(
    "url", ["https://example.com", "HTTPS://Example.com:8443/a?b=c%20d&e[]=~", "http://xn--mnchen-3ya.de/"]
)
def test_a_plain_url_will_do(url):
    assert refusal(url, resolve=leading_to("8.8.8.8")) == ""


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254"])
def test_a_name_that_is_turned_round_later_leads_nowhere(db, desk, events, receiver, clock, address):
    """The address that is connected to is the one looked at, whatever the name was when the webhook was made."""
    fields = ticketapi.read_webhook({"url": f"http://example.com:{receiver.port}/"}, False, resolve=leading_to("8.8.8.8"))
    hook = ticketapi.create_webhook(db, fields, 7, NOON)
    events.add("ticket.created")
    courier = Courier(desk, clock, leading_to(address))
    courier.go()
    courier._close()
    assert receiver.messages == []
    assert sent(db, hook)[0]["error"] == f"{address} is not a public address"


def test_the_address_that_was_looked_at_is_the_one_connected_to(receiver):
    """A second look-up, by whoever connects, could give another one."""
    asked = []

    def resolve(host, port, seconds):
        asked.append((host, port))
        return ["127.0.0.1"]

    hook = {"url": f"http://no-such-host.invalid:{receiver.port}/", "private": 1, "secret": "whsec_AAAA"}
    found = ticketapi.send_message(hook, {"message_id": "msg_1", "body": "{}"}, NOON, time.monotonic, resolve)
    assert found.status == 204
    assert asked == [("no-such-host.invalid", receiver.port)]
    assert receiver.messages[0].headers["Host"] == f"no-such-host.invalid:{receiver.port}"


def test_the_next_address_is_tried_where_one_does_not_answer(receiver):
    hook = {"url": f"http://two.test:{receiver.port}/", "private": 1, "secret": "whsec_AAAA"}
    resolve = leading_to("127.0.0.2" if receiver.server.server_address[0] != "127.0.0.2" else "", "127.0.0.1")
    found = ticketapi.send_message(hook, {"message_id": "msg_1", "body": "{}"}, NOON, time.monotonic, resolve)
    assert found.status == 204


def test_a_webhook_of_the_command_line_stays_one(db, events, webhook, courier, receiver):
    """What only the command line may do stays done when another field is changed over the API."""
    fields = ticketapi.read_webhook({"name": "other"}, private=False, is_new=False)
    ticketapi.update_webhook(db, webhook["id"], fields, NOON)
    receiver.behaviour = reply(200)
    events.add("ticket.created")
    courier.go()
    assert sent(db, webhook)[0]["status"] == "delivered"
    with pytest.raises(ticketapi.InvalidFields):
        ticketapi.read_webhook({"url": receiver.url}, private=False, is_new=False)
