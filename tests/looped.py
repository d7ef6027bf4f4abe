"""A server of this process, in a thread: what the tests of parked requests, of streams and of events share."""

import threading
import warnings
from contextlib import closing, contextmanager

import ticketapi


class Looped:
    """A server whose app a test has made."""

    def serve(self, app, settings, audit, clock):
        """Start to serve."""
        self.sock = ticketapi.bind_socket("127.0.0.1", 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.server = ticketapi.Server(app, [self.sock], settings, lambda: audit.commit(clock.monotonic()))
        self.address = self.sock.getsockname()
        self.thread = threading.Thread(target=self.server.run, args=(lambda: None,))
        self.thread.start()

    def stop(self):
        """Stop, and wait for the end."""
        self.server.call(self.server.stop)  # in the loop, as a signal does
        self.thread.join(15)
        assert not self.thread.is_alive()


@contextmanager
def running(kind, settings):
    """Give a running server of a kind, on a desk with a token."""
    with closing(ticketapi.open_database(settings.db, "desk")) as db:
        token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["read:tickets"], 0, 1_764_849_600_000_000)
    with closing(ticketapi.AuditLog(settings.audit_db, grouped=settings.threads == 1)) as audit:
        desk = kind(settings, audit, token["token"])
        yield desk
        desk.stop()
