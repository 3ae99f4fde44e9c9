"""The daemon's work, without D-Bus: what is followed, what is offered, and installing it.

It does nothing by itself that the client could do: it runs `steamos-atomupd-client`, gives it what the owner chose, and
keeps what it said.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import msgspec

from overhaul.dialects.atomupd.candidates import Candidate, Update, UpdatePath, decode_update
from overhaul.dialects.atomupd.configuration import IniFile
from overhaul.dialects.atomupd.device.asking import fetch_text
from overhaul.dialects.atomupd.device.installation import (
    Installation,
    UpdateStatus,
    UpdateUnderWayError,
    end_earlier_client,
    end_rauc,
)
from overhaul.dialects.atomupd.device.places import Places
from overhaul.dialects.atomupd.device.preferences import (
    Choices,
    Preferences,
    UnknownChoiceError,
    checked_proxy,
    defaults_of,
    is_name,
    read_choices,
    read_preferences,
    take_over_legacy_choice,
    write_preferences,
)
from overhaul.dialects.atomupd.device.runtime import answer_text
from overhaul.dialects.atomupd.device.settings import ClientSettings, Era, Method, load_settings
from overhaul.dialects.atomupd.device.updating import Order, read_running
from overhaul.dialects.atomupd.manifest import Image
from overhaul.dialects.atomupd.paths import REMOTE_INFO, remote_info_directory
from overhaul.errors import InputError, NetworkError, OperatorError, OverhaulError
from overhaul.host.files import replace_bytes

_UNKNOWN_TO_SERVER = 2


class EarlyServerError(OperatorError):
    """The daemon needs what early servers do not have."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} has a QueryUrl only; the daemon needs a MetaUrl.")


class NotOfferedError(InputError):
    """A build that no check has found."""

    def __init__(self, *, build_id: str) -> None:
        self.build_id = build_id
        super().__init__(f"The build {build_id!r} is not offered as the next update; check for updates first.")


class CheckFailedError(NetworkError):
    """The client could not find out what is offered."""

    def __init__(self, *, reason: str, can_retry: bool) -> None:
        self.reason = reason
        self.can_retry = can_retry
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True)
class Offered:
    """One image that a check found, and the build that must be installed before it."""

    candidate: Candidate
    requires: str = ""


class UpdateDaemon:
    """What the D-Bus interface shows."""

    def __init__(
        self,
        places: Places,
        *,
        client: Sequence[str],
        changed: Callable[[], None],
        rauc_process: Callable[[], "asyncio.Future[int | None]"],
        manifest: Path | None = None,
        is_debugging: bool = False,
    ) -> None:
        self.places = places
        self._client = tuple(client)
        self._changed = changed
        self._rauc_process = rauc_process
        self._manifest = manifest
        self._is_debugging = is_debugging
        self.build_id = ""
        self.version = ""
        self.available: tuple[Offered, ...] = ()
        self.later: tuple[Offered, ...] = ()
        self._load()
        places.runtime.mkdir(parents=True, exist_ok=True)
        self.installation = Installation(
            changed=changed,
            rauc_process=rauc_process if self.settings.method is not Method.SLOTS else None,
            pid_file=places.client_pid,
        )
        self._read_reboot_marker()

    def _load(self) -> None:
        path = self.places.configuration
        settings = load_settings(path)
        if settings.era is Era.EARLY:
            raise EarlyServerError(path=path)
        running = read_running(settings, Order(manifest_file=self._manifest))
        defaults = defaults_of(running)
        self.settings: ClientSettings = settings
        self.running: Image = running
        self.choices: Choices = self._read_choices(defaults)
        self.preferences: Preferences = self._take_over(read_preferences(self.places.preferences, defaults=defaults))

    async def begin(self) -> None:
        """End what an earlier daemon left."""
        await end_earlier_client(self.places.client_pid)
        if self.settings.method is not Method.SLOTS:
            await end_rauc(self._rauc_process)

    async def reload(self) -> None:
        """Read the configuration again."""
        if self.installation.is_under_way:
            raise UpdateUnderWayError
        self._load()
        self._forget_offers()
        await self.refresh_choices()

    async def refresh_choices(self) -> None:
        """Ask the server which variants and branches can be chosen; without an answer the last one counts."""
        if self.places.is_dev:
            return
        url = f"{self.settings.meta_url}/{remote_info_directory(self.running)}/{REMOTE_INFO}"
        try:
            text = await asyncio.to_thread(fetch_text, self.settings, url)
            IniFile(self.places.remote_info, text)
        except OverhaulError:
            return
        replace_bytes(self.places.remote_info, text.encode())
        self.choices = self._read_choices(defaults_of(self.running))
        self._changed()

    async def check(self, *, penultimate: bool) -> tuple[tuple[Offered, ...], tuple[Offered, ...]]:
        """Ask the server, and return what is next and what comes later.

        Raises:
            CheckFailedError: Nobody could tell.
        """
        if self.installation.is_under_way:
            raise UpdateUnderWayError
        arguments = [
            *self._base_arguments(),
            *("--variant", self._asked_variant(), "--branch", self.preferences.branch),
            *("--query-only", "--estimate-download-size"),
            *(["--penultimate-update"] if penultimate else []),
        ]
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(),
        )
        output, errors = await process.communicate()
        if process.returncode != 0:
            self._forget_offers()
            self._refuse(process.returncode or 0, errors.decode("utf-8", "replace"))
        self._take_answer(output)
        return self.available, self.later

    async def start(self, build_id: str) -> None:
        """Install what the last check found as next."""
        if self.installation.is_under_way:
            raise UpdateUnderWayError
        offered = next((one for one in self.available if str(one.candidate.image.build_id) == build_id), None)
        if offered is None:
            raise NotOfferedError(build_id=build_id)
        copy = self.places.runtime / "update-under-way.json"
        replace_bytes(copy, self.places.answer.read_bytes())
        self.build_id, self.version = build_id, offered.candidate.image.version.text
        arguments = [*self._base_arguments(), "--update-file", str(copy), "--update-version", build_id]
        await self._start(arguments)

    async def start_custom(self, *, url: str, chunks_store_url: str = "") -> None:
        """Install the bundle at `url`."""
        self.build_id, self.version = "", ""
        arguments = [*self._base_arguments(), "--update-from-url", url]
        await self._start([*arguments, *(["--chunks-store-url", chunks_store_url] if chunks_store_url else [])])

    def is_downgrade(self, build_id: str) -> bool:
        """Whether a build that is offered is older than the one that runs."""
        return any(
            one.candidate.image.build_id < self.running.build_id
            for one in self.available
            if str(one.candidate.image.build_id) == build_id
        )

    def image_url(self, path: str) -> str:
        """Return the address of a path below the address of images."""
        return f"{self.settings.images_url}/{path.lstrip('/')}"

    def switch(self, *, variant: str | None = None, branch: str | None = None) -> None:
        """Follow another variant or branch from now on.

        Raises:
            UnknownChoiceError: It cannot be chosen.
        """
        if self.installation.is_under_way:
            raise UpdateUnderWayError
        choices = self.choices
        branches = (*choices.branches, *choices.dev_branches)
        for kind, name, known in (("variant", variant, choices.variants), ("branch", branch, branches)):
            if name is not None and name not in known:
                raise UnknownChoiceError(kind=kind, name=name, known=known)
        kept = self.preferences
        self._prefer(replace(kept, variant=variant or kept.variant, branch=branch or kept.branch))

    def use_proxy(self, address: str, port: int) -> None:
        """Let the client go through a proxy; an empty address ends that."""
        if address:
            address, port = checked_proxy(address, port)
        self._prefer(replace(self.preferences, proxy_address=address, proxy_port=port if address else 0))

    async def builds(self, variant: str) -> Path:
        """Fetch the list of all builds of a variant, and return where it lies."""
        if variant and not is_name(variant):
            raise UnknownChoiceError(kind="variant", name=variant, known=self.choices.variants)
        chosen = variant or self.preferences.variant
        directory = remote_info_directory(self.running, variant=self._secret_variant(chosen))
        text = await asyncio.to_thread(fetch_text, self.settings, f"{self.settings.meta_url}/{directory}/builds.json")
        path = self.places.shared_runtime / f"builds-{chosen}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, text.encode())
        return path

    async def _start(self, arguments: list[str]) -> None:
        def succeeded() -> None:
            marker = f"{self.build_id}-{self.version}" if self.build_id else "custom"
            self.places.reboot_marker.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(self.places.reboot_marker, f"{marker}\n".encode())
            self._forget_offers()

        await self.installation.start(arguments, environment=self._environment(), succeeded=succeeded)

    def _base_arguments(self) -> list[str]:
        manifest = self._manifest or self.settings.manifest
        arguments = [*self._client, "--config", str(self.settings.path), "--manifest-file", str(manifest)]
        return [*arguments, *(["--debug"] if self._is_debugging else [])]

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self.preferences.proxy_url:
            environment |= dict.fromkeys(("http_proxy", "https_proxy"), self.preferences.proxy_url)
        return environment

    def _asked_variant(self) -> str:
        return self._secret_variant(self.preferences.variant)

    def _secret_variant(self, variant: str) -> str:
        """Return the name under which a server that wants a password keeps a variant."""
        settings = self.settings
        if not settings.username:
            return variant
        secret = hashlib.sha256(f"{settings.username}:{settings.password}".encode()).hexdigest()
        return f"{variant}_{secret}_DO_NOT_SHARE_URL"

    def _refuse(self, code: int, errors: str) -> None:
        said = errors.strip().splitlines()[-1].split(": ", 1)[-1] if errors.strip() else f"It ended with status {code}."
        defaults = defaults_of(self.running)
        followed = replace(
            defaults, proxy_address=self.preferences.proxy_address, proxy_port=self.preferences.proxy_port
        )
        if code == _UNKNOWN_TO_SERVER:
            if followed != self.preferences:
                # What was followed is gone; staying on it would end all updates.
                self._prefer(followed)
                said += f" The device follows {defaults.variant} {defaults.branch} again."
            raise CheckFailedError(reason=said, can_retry=False)
        raise CheckFailedError(reason=said, can_retry=True)

    def _take_answer(self, output: bytes) -> None:
        path = decode_update(output).minor
        candidates = path.candidates if path is not None else ()
        waiting = self.build_id if self.installation.status is UpdateStatus.SUCCESSFUL else ""
        if candidates and str(candidates[0].image.build_id) == waiting:
            candidates = ()
        if path is None or not candidates:
            self._forget_offers()
            return
        candidates = tuple(self._with_secret_paths(candidate) for candidate in candidates)
        kept = UpdatePath(
            release=path.release, candidates=candidates, replacement_eol_variant=path.replacement_eol_variant
        )
        replace_bytes(self.places.answer, answer_text(Update(minor=kept)).encode())
        self.available = (Offered(candidate=candidates[0]),)
        self.later = tuple(
            Offered(candidate=candidate, requires=str(before.image.build_id))
            for before, candidate in pairwise(candidates)
        )
        if path.replacement_eol_variant and path.replacement_eol_variant != self.preferences.variant:
            self._store(replace(self.preferences, variant=path.replacement_eol_variant))
        self._changed()

    def _with_secret_paths(self, candidate: Candidate) -> Candidate:
        """Return a candidate of a private variant with the paths that its images really have."""
        variant = candidate.image.shown_variant
        secret = self._secret_variant(variant)

        def mended(path: str) -> str:
            return path.replace(f"/{variant}/", f"/{secret}/") if path.startswith("dev/") else path

        return msgspec.structs.replace(
            candidate,
            update_path=mended(candidate.update_path),
            chunks_store_path=mended(candidate.chunks_store_path),
        )

    def _forget_offers(self) -> None:
        self.available, self.later = (), ()
        self.places.answer.unlink(missing_ok=True)
        self._changed()

    def _prefer(self, preferences: Preferences) -> None:
        self._store(preferences)
        # What was offered was offered for something else.
        self._forget_offers()

    def _store(self, preferences: Preferences) -> None:
        write_preferences(self.places.preferences, preferences)
        self.preferences = preferences

    def _take_over(self, preferences: Preferences) -> Preferences:
        legacy = self.places.legacy_choice
        if not legacy.exists():
            return preferences
        found = take_over_legacy_choice(legacy, defaults=defaults_of(self.running))
        if found is not None and not self.places.preferences.exists():
            preferences = replace(preferences, variant=found.variant, branch=found.branch)
            write_preferences(self.places.preferences, preferences)
        legacy.unlink(missing_ok=True)
        return preferences

    def _read_choices(self, own: Preferences) -> Choices:
        source = self.places.remote_info
        if self.places.is_dev or not source.exists():
            source = self.settings.path
        try:
            return read_choices(IniFile.read(source), own=own)
        except OperatorError:
            return read_choices(IniFile.read(self.settings.path), own=own)

    def _read_reboot_marker(self) -> None:
        try:
            text = self.places.reboot_marker.read_text().strip()
        except OSError:
            return
        # The directory is emptied by every restart, so what it says still waits.
        self.build_id, _dash, self.version = ("", "", "") if text == "custom" else text.partition("-")
        self.installation.status = UpdateStatus.SUCCESSFUL
        self.installation.percent = 100.0


def describe(offered: Sequence[Offered]) -> dict[str, dict[str, str | int]]:
    """Return offers as the interface shows them, by build id."""
    shown: dict[str, dict[str, str | int]] = {}
    for one in offered:
        image = one.candidate.image
        shown[str(image.build_id)] = {
            "variant": image.shown_variant,
            "branch": image.branch,
            "version": image.version.text,
            "estimated_size": image.estimated_size,
            **({"requires": one.requires} if one.requires else {}),
        }
    return shown
