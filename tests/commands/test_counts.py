"""A count that makes no sense is refused in one line that names the option, and no desk is made."""

import pytest


@pytest.mark.parametrize("more", [(), ("--json",), ("--since", "90d")])
@pytest.mark.parametrize("count", [0, -1, -(10**9)])
def test_there_is_no_generating_of_no_tickets(run, tmp_path, count, more):
    told = "ticketapi: Invalid ticket count: --count must be 1 or more\n"
    assert run("generate", "--count", count, *more) == (2, "", told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "since"), [(500_001, "1s"), (1_000_001, "2s"), (10**9, "1m"), (10**9, "33m")])
def test_a_period_has_room_for_a_ticket_every_other_microsecond(run, tmp_path, count, since):
    told = "ticketapi: Invalid ticket count: --count is too many for so short a --since\n"
    assert run("generate", "--count", count, "--since", since) == (2, "", told)
    assert list(tmp_path.iterdir()) == []
