"""A history of 68 years, the longest there is, takes seconds to make."""

from soundness import assert_sound


def test_a_history_may_be_as_long_as_its_option_allows(run, desk):
    assert run("generate", "--count", 10, "--since", "25000d", "--db", desk)[0] == 0
    assert sum(assert_sound(desk)) == 10
