"""Messages about failures of a disk or a bucket: one line with the place, the reason and the remedy.

The libraries' own texts are omitted: they may contain the output of a credential helper or a URL with a password.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from drs_ray.errors import StoreError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

CREDENTIALS_REMEDY = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
_ACCESS_DENIED = (
    "access denied",
    "allow s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there, or use other credentials",
)
_NO_BUCKET = ("no such bucket", "create it or correct the s3:// URI")
_BAD_NAME = ("S3 does not allow this name of a bucket", "correct the s3:// URI")
_REJECTED = ("the credentials were rejected", CREDENTIALS_REMEDY + "; keys that expire must be renewed")
_WRONG_REGION = ("the bucket is in another region", "set AWS_DEFAULT_REGION to its region")
_BUSY = ("the server is overloaded or failing", "try again later: a run goes on where it stopped")
_SERVER_FULL = ("no space left on the server", "free some space there: a run goes on where it stopped")
_S3_REASONS = {
    "AccessDenied": _ACCESS_DENIED,
    "403": _ACCESS_DENIED,
    "NoSuchBucket": _NO_BUCKET,
    "404": _NO_BUCKET,
    "ExpiredToken": _REJECTED,
    "InvalidAccessKeyId": _REJECTED,
    "InvalidToken": _REJECTED,
    "SignatureDoesNotMatch": _REJECTED,
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set it: requests are signed with the time"),
    "InvalidBucketName": _BAD_NAME,
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "PermanentRedirect": _WRONG_REGION,
    "NotImplemented": ("the server lacks an operation", "use one with conditional writes (If-None-Match)"),
    "XMinioStorageFull": _SERVER_FULL,
    "507": _SERVER_FULL,
}
_CHECKSUM_STATUSES = (400, 403, 501)
_CHECKSUM_REMEDY = (
    "; or it does not know the headers x-amz-checksum-*: set AWS_REQUEST_CHECKSUM_CALCULATION and "
    "AWS_RESPONSE_CHECKSUM_VALIDATION to when_required"
)
# Codes of answers below 500 after which a retry may succeed: too many requests, or bytes lost in transfer.
_PASSING = {
    "BadDigest",
    "BandwidthLimitExceeded",
    "IncompleteBody",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "XAmzContentChecksumMismatch",
}

_ELSEWHERE = "choose another place"
_OWN_PLACE = "choose a directory that you may write to"
_NOT_A_DIRECTORY = ("a part of this path is a file", _ELSEWHERE)
_NO_LINKS = ("not permitted by the file system (hard links are needed)", _ELSEWHERE)
_OS_REASONS = {
    errno.EACCES: ("permission denied", _OWN_PLACE),
    errno.EDQUOT: ("the disk quota is used up", f"free some space or {_ELSEWHERE}"),
    errno.EEXIST: _NOT_A_DIRECTORY,
    errno.EFBIG: ("the file is larger than the disk or a limit allows", f"raise `ulimit -f` or {_ELSEWHERE}"),
    errno.ENOENT: ("the directory cannot be made", _ELSEWHERE),
    errno.ENOSPC: ("no space left on the disk", f"free some space or {_ELSEWHERE}"),
    errno.ENOTDIR: _NOT_A_DIRECTORY,
    errno.ENOTSUP: _NO_LINKS,
    errno.EPERM: _NO_LINKS,
    errno.EROFS: ("the file system is read-only", _OWN_PLACE),
}


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` into a `StoreError` about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {_os_reason(error)}") from error


@contextmanager
def s3_errors(endpoint: str, place: str, sends_checksums: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turns exceptions of boto3 into a `StoreError` about `place`; `endpoint` is "" for AWS itself.

    `sends_checksums`: whether requests to a custom endpoint had headers that older servers refuse.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        reason, transient = _client_reason(error)
        if s3_status(error) in _CHECKSUM_STATUSES and sends_checksums():
            reason += _CHECKSUM_REMEDY
        raise StoreError(f"{place}: {reason}", transient) from error
    except (BotoCoreError, ResponseParserError, HTTPError) as error:  # boto3 does not wrap the last two
        server = without_userinfo(endpoint) if endpoint else "AWS S3"
        reason, transient = _botocore_reason(error, server)
        raise StoreError(f"{place}: {reason}", transient) from error
    except OSError as error:  # a certificate bundle or a config file that cannot be read
        raise StoreError(f"{place}: {_os_reason(error)}") from error


def _os_reason(error: OSError) -> str:
    reason, remedy = _OS_REASONS.get(error.errno or 0, (error.strerror or str(error), "check the path and the disk"))
    return f"{reason}; {remedy}"


def s3_code(error: ClientError) -> str:
    """The server's error code, such as NoSuchKey, or the HTTP status if the server sent no code."""
    return error.response.get("Error", {}).get("Code", "")


def s3_status(error: ClientError) -> int:
    """The HTTP status of the server's answer."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _client_reason(error: ClientError) -> tuple[str, bool]:
    """The server's answer as reason and remedy, and whether the failure is transient."""
    status = s3_status(error)
    code = s3_code(error)
    known = _S3_REASONS.get(code)
    transient = known is None and (status >= 500 or status in (408, 429) or code in _PASSING)
    reason, remedy = known or (
        _BUSY if transient else ("the server refused", "check the s3:// URI, the endpoint and the permissions")
    )
    return f"{reason} ({code}, HTTP {status}); {remedy}", transient


def _botocore_reason(error: Exception, server: str) -> tuple[str, bool]:
    """A failure before an answer as reason and remedy, and whether the failure is transient."""
    from botocore import exceptions

    if isinstance(error, exceptions.ProfileNotFound):
        return f"the AWS profile {os.getenv('AWS_PROFILE', 'default')!r} does not exist; correct AWS_PROFILE", False
    if isinstance(
        error,
        exceptions.NoCredentialsError
        | exceptions.PartialCredentialsError
        | exceptions.CredentialRetrievalError
        | exceptions.TokenRetrievalError
        | exceptions.SSOError,
    ):
        return f"no usable AWS credentials ({type(error).__name__}); {CREDENTIALS_REMEDY}", False
    if isinstance(error, exceptions.ParamValidationError):
        return "; ".join(_BAD_NAME), False  # the bucket is the only parameter that the user sets
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"the certificate of {server} cannot be verified; set AWS_CA_BUNDLE", False
    if isinstance(error, exceptions.BotoCoreError) and not isinstance(
        error,
        exceptions.ConnectionError
        | exceptions.HTTPClientError
        | exceptions.IncompleteReadError
        | exceptions.ChecksumError
        | exceptions.FlexibleChecksumError,
    ):
        return f"boto3 cannot use its settings ({type(error).__name__}); check AWS_* variables and ~/.aws/config", False
    return (
        f"no proper answer from {server} ({type(error).__name__}); check the network and the endpoint_url: "
        "a run goes on where it stopped",
        True,
    )


def without_userinfo(uri: str) -> str:
    """`uri` without `user:password@`, even where the password contains a slash."""
    return re.sub(r"//.*@", "//", uri)
