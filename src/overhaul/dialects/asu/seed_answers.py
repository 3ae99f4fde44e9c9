"""A build as the seed era's interface tells of it: the status says how it stands, headers say where it waits."""

from overhaul.builds.records import BuildRecord, BuildState
from overhaul.builds.results import FailureKind
from overhaul.dialects.asu.prepared import Prepared, json_answer
from overhaul.dialects.asu.refusals import ImpossiblePackagesError, RefusedRequestError, Subject
from overhaul.dialects.asu.seed_images import SeedImage

_STATUS_OF_FAILURE = {
    FailureKind.IMPOSSIBLE_PACKAGES: 409,
    FailureKind.PACKAGE_VERSION: 409,
    FailureKind.TOO_BIG: 413,
}
#: What servers of 2019 answered with 412, and the documentation with 400.
_PRECONDITIONS = frozenset(
    {Subject.DISTRIBUTION, Subject.VERSION, Subject.TARGET, Subject.TARGET_UNSUPPORTED, Subject.DEVICE}
)
#: So long a client waits before it asks an overloaded server again.
RETRY_AFTER_S = "300"


def answer(
    build: BuildRecord, image: SeedImage | None, *, name: str, position: int, needs_sysupgrade: bool
) -> Prepared:
    """Return what a client is told of `build`, asked for as `name`; `image` is there once it is finished."""
    if build.state is BuildState.QUEUED:
        return json_answer(
            202,
            {"request_hash": name},
            X_Imagebuilder_Status="queue",
            X_Build_Queue_Position=str(position),
        )
    if build.state is BuildState.STARTED:
        return json_answer(202, {"request_hash": name}, X_Imagebuilder_Status="building")
    if image is not None and build.result is not None:
        document: dict[str, object] = {
            "files": f"/json/{image.directory}/",
            "log": f"/download/{image.directory}/{image.log_name}",
            "request_hash": name,
            "image_hash": image.image_hash,
        }
        if image.sysupgrade is not None:
            return json_answer(200, {"sysupgrade": image.sysupgrade, **document})
        if needs_sysupgrade:
            return json_answer(501, {"error": "no sysupgrade image exists for this device", **document})
        return json_answer(200, document)
    failure = build.failure
    return json_answer(
        500 if failure is None else _STATUS_OF_FAILURE.get(failure.kind, 500),
        {
            "error": "build failed" if failure is None else failure.detail,
            "log": f"/download/faillogs/faillog-{name}.txt",
            "request_hash": name,
        },
    )


def refusal(error: RefusedRequestError, *, legacy_status: bool) -> Prepared:
    """Return the answer to a request that cannot lead to an image."""
    if isinstance(error, ImpossiblePackagesError):
        names = ", ".join(error.packages)
        document = {
            "error": f"could not find packages: {names}",
            "packages": [
                {"package": one.package, "reason": one.reason, "replacement": one.replacement} for one in error.problems
            ],
        }
        return json_answer(422, document, X_Unknown_Package=names)
    if error.subject is Subject.DEFAULTS_SIZE:
        return json_answer(420, {"error": error.detail})
    if error.missing:
        status = 412 if legacy_status else 400
        return json_answer(status, {"error": error.detail}, X_Missing_Param=error.value)
    status = 412 if legacy_status and error.subject in _PRECONDITIONS else 400
    return json_answer(status, {"error": error.detail})


def overloaded(waiting: int) -> Prepared:
    """Return the answer of a server whose queue is full."""
    return json_answer(503, {"error": f"{waiting} builds wait already"}, Retry_After=RETRY_AFTER_S)


def unknown(what: str) -> Prepared:
    """Return the answer for a name that stands for nothing."""
    return json_answer(404, {"error": f"unknown {what}"})
