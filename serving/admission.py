"""How much work may wait: counted in patches and tokens, never in requests."""

from __future__ import annotations

import threading

from fgclip_rt.errors import ServingError


class Admission:
    """Counts the work that was taken and is not done yet. Safe to use from several threads.

    Attributes:
        most: patches and tokens that may be there together.
        work: patches and tokens that are there.
    """

    def __init__(self, most: int) -> None:
        """Take at most ``most`` patches and tokens."""
        self.most = most
        self.work = 0
        self._open = True
        self._changed = threading.Condition()

    def take(self, work: int) -> None:
        """Count the work of a request.

        Raises:
            ServingError: it is more than may ever be there, or than may be there now, or no more is taken.
        """
        if work > self.most:
            raise ServingError(
                f"the request has up to {work:,} patches and tokens, and at most {self.most:,} may wait; send fewer "
                "items at once.",
                code="work_too_large",
            )
        with self._changed:
            if not self._open:
                raise closed()
            if self.work + work > self.most:
                raise ServingError(
                    f"{self.work:,} patches and tokens are waiting, and {work:,} more would exceed {self.most:,}; ask "
                    "again later."
                )
            self.work += work

    def give_back(self, work: int) -> None:
        """Work was done, or is not to be done any more."""
        with self._changed:
            self.work -= work
            self._changed.notify_all()

    def close(self, timeout: float | None) -> bool:
        """Take no more; whether all work was done before ``timeout`` seconds were over, or however long it took."""
        with self._changed:
            self._open = False
            return self._changed.wait_for(lambda: self.work == 0, timeout)


def closed() -> ServingError:
    """The error of a request that comes too late."""
    return ServingError("the server is shutting down; ask another one, or again later.", code="shutting_down")
