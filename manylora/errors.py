"""Every error a person can meet, in one tree. What lives elsewhere: how they are printed
(`cli/output.py`) and how they are put on the wire (`api/problems.py`).

ManyloraError
├── UsageError              a wrong flag or value                     exit 2    400
│   ├── UnknownBaseError    no base of that name                      exit 2    400
│   └── BadSpecError        rank, targets or hyperparameters          exit 2    400
├── DatasetError            lines that cannot be used                 exit 3    400
├── AuthError               no key, a wrong or an expired key         exit 4    401
├── QuotaError              a limit of the tenant is used up          exit 5    429
├── NotFoundError           no such thing, or not yours               exit 1    404
├── StateError              not possible in the state it is in        exit 1    400
├── ConflictError           the name is taken, the base is in use     exit 1    400
├── IntegrityError          bytes that are not what was promised      exit 1    500
├── UnavailableError        a part of the service cannot be reached   exit 6    503
├── LostError               another attempt owns the job now          exit 1    409
├── JobFailedError          the job ended as `failed`                 exit 100
├── JobCancelledError       the job ended as `cancelled`              exit 103
├── StackError              the embedded stack cannot start or stop   exit 1
└── TrainingError           the trainer gave up on one job            exit 1
"""

from __future__ import annotations

from typing import Any, ClassVar


class ManyloraError(Exception):
    """Something went wrong in a way we know; `hint` says what to do about it."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        code: str | None = None,
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.details = details
        #: The code of this very error; the class's own unless a finer one was given.
        self.error_code = code or type(self).code


class UsageError(ManyloraError):
    """A flag, a value or a request that cannot mean anything."""

    code = "invalid_request"
    http_status = 400
    exit_code = 2


class UnknownBaseError(UsageError):
    """No base of that name is registered."""

    code = "model_not_found"


class BadSpecError(UsageError):
    """An adapter that cannot be built: rank, target modules, hyperparameters."""

    code = "invalid_hyperparameters"


class DatasetError(ManyloraError):
    """A dataset with lines that cannot be used; `details` holds the report."""

    code = "invalid_training_file"
    http_status = 400
    exit_code = 3


class AuthError(ManyloraError):
    """No key, a wrong key or one that is no longer valid."""

    code = "invalid_api_key"
    http_status = 401
    exit_code = 4


class QuotaError(ManyloraError):
    """A limit of the tenant is used up."""

    code = "quota_exceeded"
    http_status = 429
    exit_code = 5


class NotFoundError(ManyloraError):
    """There is no such thing, or it belongs to someone else."""

    code = "not_found"
    http_status = 404


class StateError(ManyloraError):
    """The thing is in a state that does not allow this."""

    code = "invalid_state"
    http_status = 400


class ConflictError(ManyloraError):
    """The name is taken, or something still needs what should go."""

    code = "conflict"
    http_status = 400


class IntegrityError(ManyloraError):
    """Bytes are not the bytes their digest promises."""

    code = "integrity"


class UnavailableError(ManyloraError):
    """A part of the service (database, object store, broker, API) cannot be reached."""

    code = "unavailable"
    http_status = 503
    exit_code = 6


class LostError(ManyloraError):
    """A guarded write matched no row: this attempt does not own the job any more."""

    code = "lost"
    http_status = 409


class JobFailedError(ManyloraError):
    """The job that was waited for ended as `failed`."""

    code = "job_failed"
    exit_code = 100


class JobCancelledError(ManyloraError):
    """The job that was waited for ended as `cancelled`."""

    code = "job_cancelled"
    exit_code = 103


class StackError(ManyloraError):
    """The embedded stack cannot do what was asked of it."""

    code = "stack"


class TrainingError(ManyloraError):
    """The trainer gave up on one job; its neighbours go on."""

    code = "training_failed"
