"""An upgrade of a large desk is killed at random moments; PROOF_ROUNDS sets how often."""

import os
import random
import shutil
import subprocess
import time
from collections import Counter

import pytest
from old_desks import make_old
from upgrades import CURRENT, assert_upgraded, kept, start_opener, upgrade, version

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "10"))


@pytest.mark.parametrize("old_version", [1, 2, 3])
def test_an_upgrade_killed_at_any_moment_happened_or_did_not(tmp_path, old_version):
    original = make_old(tmp_path / "original.db", old_version, 50_000)
    before, chance = kept(original), random.Random(1)
    copy, versions = tmp_path / "copies" / "desk.db", Counter()
    copy.parent.mkdir()
    whole = None
    for _ in range(ROUNDS + 1):
        for path in copy.parent.iterdir():
            path.unlink()
        shutil.copy(original, copy)
        process = start_opener(copy)
        begin = time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        try:
            process.wait(whole and chance.uniform(0.01, whole))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        whole = whole or time.monotonic() - begin
        versions[version(copy)] += 1
        assert kept(copy) == before
        upgrade(copy)
        assert_upgraded(copy, before)
    assert versions[old_version]
    assert versions[CURRENT]
