"""The receiver that docs/webhooks.md shows takes what is sent and refuses what is not signed."""

import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import wait_for
from manual import snippets
from receiver import make_webhook, unused_port

import ticketapi

[RECEIVER] = snippets("webhooks.md", "Receive it", "python")


@pytest.fixture
def running(db, events):
    """The receiver of the manual on another port, and a webhook of it."""
    port = unused_port()
    hook = make_webhook(db, f"http://127.0.0.1:{port}/")
    command = [sys.executable, "-c", RECEIVER.replace("9000", str(port))]
    environment = {**os.environ, "WEBHOOK_SECRET": hook["secret"]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield hook, process
        process.kill()


def test_the_receiver_of_the_manual_takes_what_is_signed_alone(db, running):
    hook, process = running
    sent = wait_for(lambda: (one := ticketapi.send_test(db, hook["id"], ticketapi.Clock()))["status_code"] and one)
    assert sent["status"] == "delivered"
    assert process.stdout.readline() == f"webhook.test {sent['message_id']}\n"
    forged = urllib.request.Request(
        hook["url"], b"{}", {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,x"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(forged, timeout=5)
    assert caught.value.code == 400
    caught.value.close()
