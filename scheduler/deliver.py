"""The sender of webhooks: claims what is due, has it sent, settles it. A thread of the scheduler.

Several schedulers may send at once: a claim skips what another holds. Nothing is sent inside a
transaction, and a sender that dies between sending and settling makes the message go out once
more, with the same id.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock, Thread

import structlog

from manylora.clock import Clock
from manylora.errors import UnavailableError
from manylora.ledger import webhooks
from manylora.ledger.database import Database
from manylora.ledger.webhooks import Claimed
from scheduler.post import Answer

log = structlog.get_logger(__name__)
#: endpoints spoken to at once; more than one tenant may have
AT_ONCE = 16
#: longer than a try can take with the slowest of resolvers
LEASE_SECONDS = 90.0
_PRUNE_SECONDS = 3600.0


class Sender:
    """What is under way, one message at most to each endpoint."""

    def __init__(
        self,
        database: Database,
        post: Callable[[Claimed], Answer],
        clock: Clock,
        *,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`told` hears how each try ended: delivered, failed or dead."""
        self._database = database
        self._post = post
        self._clock = clock
        self._told = told
        self._lock = Lock()
        self._under_way: dict[str, Thread] = {}
        self._pruned: float | None = None
        #: set when a try has ended, so that the next message to that endpoint goes at once
        self.ended = Event()

    def begin(self) -> int:
        """Claim what is due and begin to send it; returns how many tries began.

        Raises: UnavailableError.
        """
        self.ended.clear()
        with self._lock:
            busy = list(self._under_way)
        if len(busy) >= AT_ONCE:
            return 0
        with self._database.transaction() as tx:
            claimed = webhooks.claim(
                tx, limit=AT_ONCE - len(busy), lease_seconds=LEASE_SECONDS, but=busy
            )
        for one in claimed:
            thread = Thread(
                target=self._try, args=(one,), name=f"webhook-{one.message_id}", daemon=True
            )
            with self._lock:
                self._under_way[one.webhook_id] = thread
            thread.start()
        return len(claimed)

    def finish(self, seconds: float) -> None:
        """Wait at most that long until nothing is under way."""
        until = self._clock.monotonic() + seconds
        with self._lock:
            threads = list(self._under_way.values())
        for thread in threads:
            thread.join(max(0.0, until - self._clock.monotonic()))

    def tidy(self) -> None:
        """Once an hour, delete what was settled long ago. Raises: UnavailableError."""
        now = self._clock.monotonic()
        if self._pruned is not None and now - self._pruned < _PRUNE_SECONDS:
            return
        self._pruned = now
        with self._database.transaction() as tx:
            webhooks.prune(tx)

    def run(self, stopping: Event, tick_seconds: float) -> None:
        """Send until told to stop; whoever sets `stopping` also sets `ended`."""
        while not stopping.is_set():
            try:
                self.tidy()
                self.begin()
            except UnavailableError as error:
                log.warning("webhooks.unavailable", error=error.message)
            except Exception:
                log.exception("webhooks.broke")  # and tried again: without this thread none is sent
            self._clock.wait(self.ended, tick_seconds)
        self.finish(10.0)

    def _try(self, one: Claimed) -> None:
        with structlog.contextvars.bound_contextvars(
            job_id=one.job_id, tenant_id=str(one.tenant_id), webhook_id=one.webhook_id
        ):
            try:
                self._settle(one, self._answer(one))
            except UnavailableError as error:
                # The lease runs out, and it is sent again: once too often rather than never.
                log.warning("webhook.not_settled", message_id=one.message_id, error=error.message)
            except Exception:
                log.exception("webhook.broke", message_id=one.message_id)
            finally:
                with self._lock:
                    del self._under_way[one.webhook_id]
                self.ended.set()

    def _answer(self, one: Claimed) -> Answer:
        try:
            return self._post(one)
        except Exception as error:
            # Counted like any other failure, so that it is not tried for ever.
            log.exception("webhook.not_sent", message_id=one.message_id)
            return Answer(None, f"it could not be sent ({type(error).__name__})")

    def _settle(self, one: Claimed, answer: Answer) -> None:
        with self._database.transaction() as tx:
            if answer.taken:
                assert answer.status is not None
                webhooks.delivered(tx, one, answer.status)
                ended = "delivered"
            else:
                state = webhooks.failed(tx, one, status=answer.status, error=answer.error)
                ended = "dead" if state == "dead" else "failed"
        self._told(ended)
        tell = log.info if ended == "delivered" else log.warning
        tell(
            f"webhook.{ended}",
            message_id=one.message_id,
            attempt=one.attempt,
            status=answer.status,
            error=answer.error or None,
        )
