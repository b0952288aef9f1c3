"""What a store, or boto3 on the way to it, refuses: as the one sentence that a user can act on."""

from __future__ import annotations

from typing import Any

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from infra import settings
from infra.errors import ConfigurationError, DistilflowError, TransientError

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_UNKNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "UnauthorizedAccess", "401"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_TOKEN = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException", "InvalidClientTokenId"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_FULL = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "301", "IllegalLocationConstraintException"}
REFUSED = _UNKNOWN | _DENIED | _TOKEN


def code_of(error: ClientError) -> str:
    """S3's code, or the HTTP status where there is none."""
    body = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return str(body.get("Code") or status)


def explain(error: Exception) -> DistilflowError:
    """Turn what boto3 raised into the one sentence that a user can act on; TransientError where a retry can help."""
    where = settings.s3_endpoint() or "AWS S3"
    if isinstance(error, ClientError):
        return _refused(error, where)
    if isinstance(error, exceptions.NoCredentialsError):
        return ConfigurationError(f"no credentials for S3 at {where}: set {_KEYS}")
    if isinstance(error, exceptions.PartialCredentialsError):
        return ConfigurationError(f"half of the credentials for S3 at {where} is missing: set both {_KEYS}")
    if isinstance(error, exceptions.InvalidS3AddressingStyleError):
        return ConfigurationError(f"{error}: set DISTILFLOW_S3_ADDRESSING to path or virtual, or leave it out")
    if isinstance(error, exceptions.ProfileNotFound):
        return ConfigurationError(f"{error}: check AWS_PROFILE, or unset it and set {_KEYS}")
    if isinstance(error, _SIGN_IN):
        return ConfigurationError(f"the credentials for S3 at {where} cannot be had ({error}): sign in again")
    if isinstance(error, exceptions.SSLError):
        return ConfigurationError(
            f"the certificate of S3 at {where} is not trusted ({error}): point AWS_CA_BUNDLE at its authority's"
        )
    if isinstance(error, exceptions.ParamValidationError):
        words = " ".join(str(error).split())
        return ConfigurationError(f"S3 at {where} takes no such name ({words}): check DISTILFLOW_BUCKET")
    if isinstance(error, exceptions.HTTPClientError) and "maximum recursion depth" in str(error):
        return no_store("sends every request on to another address, without end")
    if "Unable to parse response" in str(error):
        return no_store("does not answer as S3 does")
    return TransientError(f"S3 at {where} cannot be reached ({error}): check AWS_ENDPOINT_URL_S3 and the server")


_SIGN_IN: tuple[type[BotoCoreError], ...] = (
    exceptions.SSOTokenLoadError,
    exceptions.UnauthorizedSSOTokenError,
    exceptions.TokenRetrievalError,
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
)


def _refused(error: ClientError, where: str) -> DistilflowError:
    code, bucket = code_of(error), settings.bucket()
    body: dict[str, Any] = error.response.get("Error", {})
    if code in _TOKEN:
        return ConfigurationError(f"S3 at {where} refused the session token ({code}): get a new AWS_SESSION_TOKEN")
    if code in _UNKNOWN:
        return ConfigurationError(
            f"S3 at {where} refused the credentials ({code}): check {_KEYS}, "
            f"and that they may use the bucket {bucket!r}"
        )
    if code in _DENIED:
        return ConfigurationError(
            f"S3 at {where} does not let these credentials do {error.operation_name} in the bucket {bucket!r} "
            f"({code}): give them the right to, or check {_KEYS} and DISTILFLOW_BUCKET"
        )
    if code in _CLOCK:
        return ConfigurationError(f"the clock of this machine and that of S3 at {where} differ ({code}): set the clock")
    if code in _FULL:
        return ConfigurationError(
            f"S3 at {where} is full, or its quota is ({code}): make room (`distilflow gc` lists what nobody needs) and "
            "run again; what is finished is kept"
        )
    if code in _REGION:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = body.get("Region") or headers.get("x-amz-bucket-region")
        hint = f"AWS_DEFAULT_REGION={region}" if region else "AWS_DEFAULT_REGION to the bucket's region"
        return ConfigurationError(f"the bucket {bucket!r} of S3 at {where} is in another region ({code}): set {hint}")
    if code == "NoSuchBucket":
        return ConfigurationError(f"S3 at {where} has no bucket {bucket!r}: create it or set DISTILFLOW_BUCKET")
    if code in ("BucketAlreadyExists", "InvalidBucketName"):
        return ConfigurationError(
            f"the bucket name {bucket!r} cannot be had at {where} ({code}): set DISTILFLOW_BUCKET"
        )
    tries = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
    times = f" in each of {tries} tries" if tries > 1 else ""
    return TransientError(f"S3 at {where} answered {code}{times}: run again, finished work is kept")


def no_store(does: str) -> ConfigurationError:
    """The error to raise where something answers that is no store."""
    return ConfigurationError(f"what is at {settings.s3_endpoint() or 'AWS S3'} {does}: check AWS_ENDPOINT_URL_S3")
