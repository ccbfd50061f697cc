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
    """Something went wrong in a way we know.

    `hint` says what to do about this very case; where there is none, `default_hint` does.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str] = "the logs of the service say more"

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
    default_hint = "manylora COMMAND --help shows what it takes"


class UnknownBaseError(UsageError):
    """No base of that name is registered."""

    code = "model_not_found"
    default_hint = "manylora base list shows what is registered"


class BadSpecError(UsageError):
    """An adapter that cannot be built: rank, target modules, hyperparameters."""

    code = "invalid_hyperparameters"
    default_hint = "manylora submit --help shows the flags and their defaults"


class DatasetError(ManyloraError):
    """A dataset with lines that cannot be used; `details` holds the report."""

    code = "invalid_training_file"
    http_status = 400
    exit_code = 3
    default_hint = "manylora validate FILE names every bad line and its fix"


class AuthError(ManyloraError):
    """No key, a wrong key or one that is no longer valid."""

    code = "invalid_api_key"
    http_status = 401
    exit_code = 4
    default_hint = "check MANYLORA_API_KEY"


class QuotaError(ManyloraError):
    """A limit of the tenant is used up."""

    code = "quota_exceeded"
    http_status = 429
    exit_code = 5
    default_hint = "wait until running jobs end, or ask whoever runs the service"


class NotFoundError(ManyloraError):
    """There is no such thing, or it belongs to someone else."""

    code = "not_found"
    http_status = 404
    default_hint = "manylora jobs, adapters and base list show what there is"


class StateError(ManyloraError):
    """The thing is in a state that does not allow this."""

    code = "invalid_state"
    http_status = 400
    default_hint = "manylora show ID says where it stands"


class ConflictError(ManyloraError):
    """The name is taken, or something still needs what should go."""

    code = "conflict"
    http_status = 400
    default_hint = "choose another name, or end first what still needs this one"


class IntegrityError(ManyloraError):
    """Bytes are not the bytes their digest promises."""

    code = "integrity"
    default_hint = "try again; if it stays so, the stored copy is damaged"


class UnavailableError(ManyloraError):
    """A part of the service (database, object store, broker, API) cannot be reached."""

    code = "unavailable"
    http_status = 503
    exit_code = 6
    default_hint = "try again in a while; manylora status shows what runs here"


class LostError(ManyloraError):
    """A guarded write matched no row: this attempt does not own the job any more."""

    code = "lost"
    http_status = 409
    default_hint = "nothing to do: the attempt that owns the job goes on"


class JobFailedError(ManyloraError):
    """The job that was waited for ended as `failed`."""

    code = "job_failed"
    exit_code = 100
    default_hint = "manylora logs ID says why"


class JobCancelledError(ManyloraError):
    """The job that was waited for ended as `cancelled`."""

    code = "job_cancelled"
    exit_code = 103
    default_hint = "submit it again to have the adapter"


class StackError(ManyloraError):
    """The embedded stack cannot do what was asked of it."""

    code = "stack"
    default_hint = "the folder logs below MANYLORA_HOME says more"


class TrainingError(ManyloraError):
    """The trainer gave up on one job; its neighbours go on."""

    code = "training_failed"
    default_hint = "manylora logs ID says at which step"
