"""Every way a request can fail, each with the HTTP status that a client sees.

    MLServerlessError       500  something of ours went wrong; the log knows what
     ├─ BadRequest          400  the client can mend it
     │   ├─ NotFound        404  no such model, version or route
     │   ├─ TooLarge        413  a body over its limit, or more than memory holds
     │   │   └─ AnswerTooLarge 413  an answer over its limit
     │   └─ UnsupportedEncoding 415  a Content-Encoding that is not gzip or deflate
     ├─ Forbidden           403  the server's owner has switched this off
     ├─ NotReady            400  asked whether it is ready, and it is not
     ├─ ModelLoadError      500  the model exists and cannot be loaded, for good
     ├─ PredictionError     500  the model is loaded and cannot predict, whatever the data
     ├─ RepositoryError     500  the repository, not a model, cannot be read, for good
     ├─ SettingsError       500  a setting, or a settings file, cannot be understood
     ├─ TooSlow             504  the model needs longer than the function has
     └─ Unavailable         503  trying again can help; carries `Retry-After`
         └─ Replaced        503  an object is no longer the one that was listed

The message of each is one line for a person who can act on it: no traceback, no class
path, no path of the server's disk, nothing of the payload beyond a quoted name.
"""

from __future__ import annotations

from collections.abc import Mapping

NAME_LIMIT = 100  # characters of a client's own words that a message repeats

REPOSITORY_TIMEOUT_MESSAGE = "the model repository takes too long to respond"
NO_THREAD_MESSAGE = "no thread can be started in the memory of this process"


class MLServerlessError(Exception):
    """The root: a failure that a client may be told about, in one line."""

    status: int = 500

    @property
    def headers(self) -> Mapping[str, str]:
        """What the answer's headers must say beside the body."""
        return {}


class BadRequest(MLServerlessError):
    """The client can mend it: JSON, shapes, datatypes, names, data the estimator refuses."""

    status = 400


class NotFound(BadRequest):
    """No such model, version or route."""

    status = 404


class TooLarge(BadRequest):
    """A body, before or after it was unpacked, or an answer, is over its limit."""

    status = 413


class AnswerTooLarge(TooLarge):
    """An answer that its way out cannot carry; says what would be smaller."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the answer is {size} bytes and Lambda carries {limit}; ask for fewer rows, "
            "for gzip (Accept-Encoding), or for binary tensors (binary_data_output)"
        )


class UnsupportedEncoding(BadRequest):
    """A Content-Encoding that this server does not read."""

    status = 415


class Forbidden(MLServerlessError):
    """The owner of the server has switched this off."""

    status = 403


class NotReady(MLServerlessError):
    """A readiness question whose answer is no."""

    status = 400


class ModelLoadError(MLServerlessError):
    """The model is there and cannot be loaded; the same bytes will fail again."""


class PredictionError(MLServerlessError):
    """The model is loaded and cannot predict: it is not fitted, or lacks an attribute or a module.

    A request with other data fails in the same way, so it is not the client's error.
    """


class RepositoryError(MLServerlessError):
    """The repository cannot be read: no access, no such bucket, no such folder."""


class SettingsError(MLServerlessError):
    """A setting, or a settings file, says something that cannot be understood."""


class TooSlow(MLServerlessError):
    """A prediction that takes longer than the time that the function has."""

    status = 504


class Unavailable(MLServerlessError):
    """A failure that passes: S3 throttled, timed out, was out of reach."""

    status = 503

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> Mapping[str, str]:
        """When to try again."""
        return {"Retry-After": str(self.retry_after)}


class Replaced(Unavailable):
    """An object is no longer the one that was listed: read its settings again."""


def quote(name: str) -> str:
    """A client's word as a message may repeat it: one line, escaped, cut at 100 characters."""
    shown = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= NAME_LIMIT else shown[:NAME_LIMIT] + "…"


def one_line(sentence: object) -> str:
    """Somebody else's sentence (the estimator's, S3's) folded into one printable line."""
    text = " ".join(str(sentence).split())
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
