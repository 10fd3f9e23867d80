"""What can be wrong with a server: for good, or until it is asked again."""

from data.cli.secrets import without_secrets
from models.errors import ModelError


class ServerError(ModelError):
    """A server that is not there, refuses what it is asked, or goes on failing; trying again at once would not help.

    Args:
        text, location, field: see `UserError`.
        status: of HTTP, where that is what was found.
    """

    def __init__(self, text: str, location: str = "", field: str = "", status: int | None = None):
        super().__init__(without_secrets(text), location, field)  # servers repeat what they were sent
        self.status = status


class Fault(Exception):
    """An attempt that failed, as the next one may not: a dropped connection, an overloaded server, half an answer.

    Args:
        found: what came in place of an answer.
        wait: seconds that the server asks to wait, if it says so.
        status: of HTTP, where that is what asks to try again.
    """

    def __init__(self, found: str, wait: float | None = None, status: int | None = None):
        self.found, self.wait, self.status = without_secrets(found), wait, status
        super().__init__(self.found)


class CallsSpent(Exception):
    """As many requests as were allowed have been made; this one is not."""


class Stopped(Exception):
    """Another request has failed for good, and this one is not made any more."""
