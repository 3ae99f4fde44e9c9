"""`com.steampowered.Atomupd1` on D-Bus: the methods, properties and errors that user interfaces were written for.

Every method asks the authority first. What it then does is the daemon's; errors come back as one sentence, under a
name that says whether trying again can help.
"""

import time
from contextvars import ContextVar
from typing import Annotated, Any

from dbus_fast import DBusError, ErrorType, Message, MessageFlag, MessageType, PropertyAccess, Variant
from dbus_fast.annotations import DBusDict, DBusDouble, DBusSignature, DBusStr, DBusUInt32, DBusUInt64
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property

from overhaul.dialects.atomupd.device.authority import Action, Authority
from overhaul.dialects.atomupd.device.daemon import CheckFailedError, UpdateDaemon, describe
from overhaul.errors import OverhaulError

NAME = "com.steampowered.Atomupd1"
PATH = "/com/steampowered/Atomupd1"
_VERSION = 8
_ERROR = f"{NAME}.Error"

Images = Annotated[dict[str, dict[str, Variant]], DBusSignature("a{sa{sv}}")]
BothImages = Annotated[tuple[Any, Any], DBusSignature("a{sa{sv}}a{sa{sv}}")]
Texts = Annotated[list[str], DBusSignature("as")]
Proxy = Annotated[list[Any], DBusSignature("(si)")]
Number = Annotated[int, DBusSignature("i")]

#: Who sent the call that is being answered, and whether polkit may ask a person. Each call is answered in a context of
#: its own, which is made while this still holds its sender.
_caller: ContextVar[tuple[str, bool]] = ContextVar("caller", default=("", False))

_SIGNATURES = {"variant": "s", "branch": "s", "version": "s", "requires": "s", "estimated_size": "t"}


def remember_caller(message: Message) -> None:
    """Note who sends a call; to be given to the bus as a message handler before anything else."""
    if message.message_type is MessageType.METHOD_CALL:
        may_ask = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        _caller.set((message.sender or "", may_ask))


class AtomupdInterface(ServiceInterface):
    """The interface; `daemon` is set before the first call can come."""

    daemon: UpdateDaemon

    def __init__(self, authority: Authority) -> None:
        super().__init__(NAME)
        self._authority = authority
        self._shown: dict[str, Any] = {}

    def show_changes(self) -> None:
        """Tell listeners which properties have another value than they were told last."""
        daemon = self.daemon
        values = {
            "ProgressPercentage": daemon.installation.percent,
            "EstimatedCompletionTime": daemon.installation.completes_at,
            "UpdateStatus": int(daemon.installation.status),
            "UpdateBuildID": daemon.build_id,
            "UpdateVersion": daemon.version,
            "Variant": daemon.preferences.variant,
            "Branch": daemon.preferences.branch,
            "HttpProxy": [daemon.preferences.proxy_address, daemon.preferences.proxy_port],
            "FailureCode": self._failure_code,
            "FailureMessage": daemon.installation.failure,
            "UpdatesAvailable": _variants(describe(daemon.available)),
            "UpdatesAvailableLater": _variants(describe(daemon.later)),
            "KnownVariants": list(daemon.choices.variants),
            "KnownBranches": list(daemon.choices.branches),
            "KnownDevBranches": list(daemon.choices.dev_branches),
        }
        changed = {name: value for name, value in values.items() if self._shown.get(name) != value}
        self._shown = values
        if changed:
            self.emit_properties_changed(changed)

    @dbus_method(name="CheckForUpdates")
    async def check_for_updates(self, options: DBusDict) -> BothImages:
        """Ask the server."""
        await self._allow(Action.CHECK)
        penultimate = _option(options, "penultimate", kind=bool, default=False)
        with _told():
            available, later = await self.daemon.check(penultimate=penultimate)
        return _variants(describe(available)), _variants(describe(later))

    @dbus_method(name="StartUpdate")
    async def start_update(self, buildid: DBusStr) -> None:
        """Install what the last check found."""
        await self._allow(Action.DOWNGRADE if self.daemon.is_downgrade(buildid) else Action.START)
        with _told():
            await self.daemon.start(buildid)

    @dbus_method(name="StartCustomUpdate")
    async def start_custom_update(self, options: DBusDict) -> None:
        """Install a bundle that no check found."""
        await self._allow(Action.CUSTOM)
        url = _option(options, "url", kind=str, default="")
        update_path = _option(options, "update_path", kind=str, default="")
        store_path = _option(options, "chunks_store_path", kind=str, default="")
        if bool(url) == bool(update_path):
            raise DBusError(ErrorType.INVALID_ARGS, "Give either url or update_path.")
        with _told():
            await self.daemon.start_custom(
                url=url or self.daemon.image_url(update_path),
                chunks_store_url=self.daemon.image_url(store_path) if store_path else "",
            )

    @dbus_method(name="PauseUpdate")
    async def pause_update(self) -> None:
        """Stop the installation where it is."""
        await self._allow(Action.MANAGE)
        with _told():
            await self.daemon.installation.pause()

    @dbus_method(name="ResumeUpdate")
    async def resume_update(self) -> None:
        """Let it go on."""
        await self._allow(Action.MANAGE)
        with _told():
            await self.daemon.installation.resume()

    @dbus_method(name="CancelUpdate")
    async def cancel_update(self) -> None:
        """End it."""
        await self._allow(Action.MANAGE)
        with _told():
            await self.daemon.installation.cancel()

    @dbus_method(name="SwitchToVariant")
    async def switch_to_variant(self, variant: DBusStr) -> None:
        """Follow another variant."""
        await self._allow(Action.SWITCH)
        with _told():
            self.daemon.switch(variant=variant)

    @dbus_method(name="SwitchToBranch")
    async def switch_to_branch(self, branch: DBusStr) -> None:
        """Follow another branch."""
        await self._allow(Action.SWITCH)
        with _told():
            self.daemon.switch(branch=branch)

    @dbus_method(name="ReloadConfiguration")
    async def reload_configuration(self, options: DBusDict) -> None:  # noqa: ARG002 - none is known
        """Read the configuration again."""
        await self._allow(Action.CONFIGURE)
        with _told():
            await self.daemon.reload()

    @dbus_method(name="EnableHttpProxy")
    async def enable_http_proxy(self, address: DBusStr, port: Number, options: DBusDict) -> None:  # noqa: ARG002
        """Go through a proxy."""
        await self._allow(Action.CONFIGURE)
        with _told():
            if not address:
                raise DBusError(ErrorType.INVALID_ARGS, "The address of the proxy is empty.")
            self.daemon.use_proxy(address, port)

    @dbus_method(name="DisableHttpProxy")
    async def disable_http_proxy(self) -> None:
        """Go without a proxy."""
        await self._allow(Action.CONFIGURE)
        with _told():
            self.daemon.use_proxy("", 0)

    @dbus_method(name="GetBuilds")
    async def get_builds(self, options: DBusDict) -> DBusStr:
        """Fetch the list of all builds of a variant."""
        await self._allow(Action.CHECK)
        with _told():
            return str(await self.daemon.builds(_option(options, "variant", kind=str, default="")))

    @dbus_method(name="EnableDevKeys")
    async def enable_dev_keys(self, options: DBusDict) -> None:  # noqa: ARG002
        """Refused: a device trusts the keys its image and its owner's configuration name."""
        raise _not_supported("EnableDevKeys")

    @dbus_method(name="DisableDevKeys")
    async def disable_dev_keys(self, options: DBusDict) -> None:  # noqa: ARG002
        """Refused like the other."""
        raise _not_supported("DisableDevKeys")

    @dbus_method(name="SimulateUpdate")
    async def simulate_update(self, options: DBusDict) -> None:  # noqa: ARG002
        """Refused: what it simulates is written down nowhere."""
        raise _not_supported("SimulateUpdate")

    @dbus_property(PropertyAccess.READ, name="Version")
    def interface_version(self) -> DBusUInt32:
        """The version of the interface."""
        return _VERSION

    @dbus_property(PropertyAccess.READ, name="ProgressPercentage")
    def progress_percentage(self) -> DBusDouble:
        """How far the installation is."""
        return self.daemon.installation.percent

    @dbus_property(PropertyAccess.READ, name="EstimatedCompletionTime")
    def estimated_completion_time(self) -> DBusUInt64:
        """The Unix time at which it will be done; 0: unknown."""
        return self.daemon.installation.completes_at

    @dbus_property(PropertyAccess.READ, name="UpdateStatus")
    def update_status(self) -> DBusUInt32:
        """See `UpdateStatus`."""
        return int(self.daemon.installation.status)

    @dbus_property(PropertyAccess.READ, name="UpdateBuildID")
    def update_build_id(self) -> DBusStr:
        """What is being installed, or was last."""
        return self.daemon.build_id

    @dbus_property(PropertyAccess.READ, name="UpdateVersion")
    def update_version(self) -> DBusStr:
        """Its version."""
        return self.daemon.version

    @dbus_property(PropertyAccess.READ, name="Variant")
    def variant(self) -> DBusStr:
        """The variant that is followed."""
        return self.daemon.preferences.variant

    @dbus_property(PropertyAccess.READ, name="Branch")
    def branch(self) -> DBusStr:
        """The branch that is followed."""
        return self.daemon.preferences.branch

    @dbus_property(PropertyAccess.READ, name="HttpProxy")
    def http_proxy(self) -> Proxy:
        """The proxy; an empty address: none."""
        return [self.daemon.preferences.proxy_address, self.daemon.preferences.proxy_port]

    @dbus_property(PropertyAccess.READ, name="FailureCode")
    def failure_code(self) -> DBusStr:
        """The error's name when the last installation failed."""
        return self._failure_code

    @dbus_property(PropertyAccess.READ, name="FailureMessage")
    def failure_message(self) -> DBusStr:
        """What went wrong."""
        return self.daemon.installation.failure

    @dbus_property(PropertyAccess.READ, name="UpdatesAvailable")
    def updates_available(self) -> Images:
        """What can be installed now."""
        return _variants(describe(self.daemon.available))

    @dbus_property(PropertyAccess.READ, name="UpdatesAvailableLater")
    def updates_available_later(self) -> Images:
        """What can be installed after that."""
        return _variants(describe(self.daemon.later))

    @dbus_property(PropertyAccess.READ, name="CurrentVersion")
    def current_version(self) -> DBusStr:
        """The version that runs."""
        return self.daemon.running.version.text

    @dbus_property(PropertyAccess.READ, name="CurrentBuildID")
    def current_build_id(self) -> DBusStr:
        """The build that runs."""
        return str(self.daemon.running.build_id)

    @dbus_property(PropertyAccess.READ, name="KnownVariants")
    def known_variants(self) -> Texts:
        """What can be followed."""
        return list(self.daemon.choices.variants)

    @dbus_property(PropertyAccess.READ, name="KnownBranches")
    def known_branches(self) -> Texts:
        """What can be followed."""
        return list(self.daemon.choices.branches)

    @dbus_property(PropertyAccess.READ, name="KnownDevBranches")
    def known_dev_branches(self) -> Texts:
        """What developers can follow."""
        return list(self.daemon.choices.dev_branches)

    @dbus_property(PropertyAccess.READ, name="SimulateUpdateResult")
    def simulate_update_result(self) -> DBusDict:
        """Nothing is ever simulated."""
        return {}

    @dbus_property(PropertyAccess.READ, name="SimulateUpdateStatus")
    def simulate_update_status(self) -> DBusUInt32:
        """Nothing is ever simulated."""
        return 0

    @dbus_property(PropertyAccess.READ, name="SimulateFailureMessage")
    def simulate_failure_message(self) -> DBusStr:
        """Nothing is ever simulated."""
        return ""

    @property
    def _failure_code(self) -> str:
        return f"{_ERROR}.Failed" if self.daemon.installation.failure else ""

    async def _allow(self, action: Action) -> None:
        sender, may_ask = _caller.get()
        if not await self._authority.allows(sender, action, interactive=may_ask):
            raise DBusError(ErrorType.ACCESS_DENIED, f"Not authorized for {action}.")


class _told:  # noqa: N801 - reads as a word at its users
    """Turns errors a person can act on into D-Bus errors with their sentence."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OverhaulError):
            retryable = error.can_retry if isinstance(error, CheckFailedError) else error.retryable
            name = f"{_ERROR}.MaybeRetryError" if retryable else f"{_ERROR}.Failed"
            raise DBusError(name, str(error)) from error


def _not_supported(member: str) -> DBusError:
    return DBusError(ErrorType.NOT_SUPPORTED, f"{member} is not supported by this daemon.")


def _option(options: dict[str, Variant], name: str, *, kind: type, default: Any) -> Any:
    value = options[name].value if name in options else default
    if type(value) is not kind:
        raise DBusError(ErrorType.INVALID_ARGS, f"The option {name} has a wrong type.")
    return value


def _variants(images: dict[str, dict[str, str | int]]) -> dict[str, dict[str, Variant]]:
    return {
        build_id: {name: Variant(_SIGNATURES[name], value) for name, value in fields.items()}
        for build_id, fields in images.items()
    }
