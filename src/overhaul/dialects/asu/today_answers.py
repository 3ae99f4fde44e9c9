"""A build as today's interface tells of it: statuses, headers, phase words and sentences its clients look for."""

from datetime import UTC, datetime

from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildRecord, BuildState
from overhaul.builds.results import BuildFailure, BuildResult
from overhaul.dialects.asu.prepared import Prepared, json_answer

_PREFIX = "Error: "
_NOT_FOUND = {"status": 404, "title": "Not Found", "detail": "could not find provided request hash"}


def not_found() -> Prepared:
    """Return the answer for a name that stands for nothing."""
    return json_answer(404, _NOT_FOUND)


def answer(build: BuildRecord, *, name: str, position: int) -> Prepared:
    """Return what a client is told of `build`, asked for as `name`."""
    document: dict[str, object] = {
        "request": request_of(build.recipe, client=build.client_label),
        "imagebuilder_status": build.phase.value,
    }
    status, word = 202, build.phase.value
    match build.state:
        case BuildState.QUEUED:
            # Clients take the mere presence of a position for "it waits".
            document |= {"detail": "queued", "queue_position": position}
            word = "queued"
        case BuildState.STARTED:
            document["detail"] = "started"
        case BuildState.FINISHED if build.result is not None:
            status, word = 200, "done"
            document |= _finished(build.result, name=name)
        case _:
            status, word = 500, "failed"
            document |= _failed(build.failure)
    document |= {
        "status": status,
        "enqueued_at": datetime.fromtimestamp(build.enqueued_at, tz=UTC).isoformat(),
        "request_hash": name,
    }
    is_queued = build.state is BuildState.QUEUED
    return json_answer(status, document, X_Imagebuilder_Status=word, X_Queue_Position=str(position if is_queued else 0))


def request_of(recipe: Recipe, *, client: str | None = None) -> dict[str, object]:
    """Return the request that `recipe` was made of, with every default filled in."""
    return {
        "distro": recipe.distribution,
        "version": recipe.version,
        "version_code": recipe.revision,
        "target": recipe.target if "/" in recipe.target else f"{recipe.distribution}/{recipe.target}",
        "profile": recipe.profile,
        "packages": list(recipe.packages),
        "packages_versions": dict(recipe.package_versions),
        "diff_packages": recipe.diff_packages,
        "defaults": recipe.defaults or None,
        "rootfs_size_mb": recipe.rootfs_size_mb,
        "filesystem": recipe.filesystem,
        "repositories": dict(recipe.repositories),
        "repositories_mode": recipe.repositories_mode,
        "repository_keys": list(recipe.repository_keys),
        "client": client,
    }


def _finished(result: BuildResult, *, name: str) -> dict[str, object]:
    release = {} if result.release is None else {"release": result.release}
    return {
        **result.document,
        **release,
        "detail": "done",
        "imagebuilder_status": "done",
        "id": result.document.get("id", ""),
        # Where the files lie below `/store/`; for most builds that is the name it was asked for by.
        "bin_dir": result.artefact or name,
        "manifest": result.manifest,
        "images": [
            {
                "name": image.name,
                "type": image.type,
                "filesystem": image.filesystem,
                "sha256": image.sha256,
                "sha256_unsigned": image.sha256_unsigned,
            }
            for image in result.images
        ],
        "build_cmd": list(result.command),
        "build_cmd_packages": list(result.command_packages),
        "build_at": build_time(result.document.get("source_date_epoch"), otherwise=result.built_at),
        "stdout": result.stdout,
        "stderr": result.stderr,
    }


def _failed(failure: BuildFailure | None) -> dict[str, object]:
    said = "failed" if failure is None else failure.detail
    detail = said if said == "failed" or said.startswith(_PREFIX) else _PREFIX + said
    stderr = "" if failure is None else failure.stderr
    return {
        "detail": detail,
        "imagebuilder_status": "failed",
        "stdout": "" if failure is None else failure.stdout,
        "stderr": f"{stderr}\n{detail}" if stderr else detail,
        "build_cmd": [] if failure is None else list(failure.command),
    }


def build_time(epoch: object, *, otherwise: float = 0.0) -> str:
    """Return the time that upstream gave a build, as a client parses it; `epoch` is seconds, as number or text."""
    try:
        moment = datetime.fromtimestamp(int(str(epoch)), tz=UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(otherwise, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
