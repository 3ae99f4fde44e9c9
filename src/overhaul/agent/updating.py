"""One update, from the offer to a slot that the boot loader will try.

The order of the durable steps is what makes a kill or a power cut harmless between any two of them:

    1  state INSTALLING     the target is named, what its slot held is forgotten
    2  boot.mark_bad        nobody boots the slot from here on
    3  assemble             bytes; returns only after all of them were read back; then the layer of configuration
    4  state INSTALLED      the slot's content is known
    5  boot.try_next        the boot loader will try it, a counted number of times
    6  state AWAITING_REBOOT

Run again after a kill, steps 1 to 3 find most bytes in place, and 5 and 6 are simply made again.
"""

import secrets
from pathlib import Path

import msgspec

from overhaul.agent.beginning import Session, followed_channel, running_release, session
from overhaul.agent.checking import Answered, ask, read_release
from overhaul.agent.configuring import carry_into_waiting, carry_over, prepare_to_carry
from overhaul.agent.metering import reason_to_wait
from overhaul.agent.outcomes import Checked, Ready, Restart, RestartAnswer, Updated
from overhaul.agent.ports import Cost, Device
from overhaul.agent.recovery import event_of
from overhaul.agent.reporting import ReportOutcome, report
from overhaul.agent.restarting import ask_for_restart
from overhaul.content.chains import find_chains
from overhaul.errors import DeviceError, NetworkError, OverhaulError, TrustError
from overhaul.install.boot import SlotStatus
from overhaul.install.slots import Slot, SlotTooSmallError, idle_slot, refuse_mounted, slot_size
from overhaul.install.state import EventKind, Phase, SlotContent, Target, with_event
from overhaul.policy.document import PolicyEntry
from overhaul.policy.selection import Cause, Offer
from overhaul.progress import Progress
from overhaul.release.record import DeltaRef, Release, ReleaseId
from overhaul.trust.refusals import UnknownTargetError


class UnconfirmedSlotError(DeviceError):
    """The running slot is not confirmed, so the other one is still needed."""

    def __init__(self, *, slot: str, status: SlotStatus) -> None:
        self.slot = slot
        self.status = status
        super().__init__(
            f"Slot {slot} runs and is not confirmed ({status}), so the other slot must stay as it is; run "
            "`overhaul device confirm` first."
        )


class NotEnoughMemoryError(DeviceError):
    """The update needs more memory than there is."""

    def __init__(self, *, needed_bytes: int, free_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"The update needs {needed_bytes} bytes of memory and {free_bytes} are free; end some programs, then run "
            "it again."
        )


class NotEnoughSpaceError(DeviceError):
    """The update needs more working space than there is."""

    def __init__(self, *, directory: Path, needed_bytes: int, free_bytes: int) -> None:
        self.directory = directory
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"The update needs {needed_bytes} bytes in {directory} and {free_bytes} are free; make room there, then "
            "run it again."
        )


def update(device: Device, *, progress: Progress) -> Updated | Ready | Checked:
    """Install what the policy offers, and have the boot loader try it.

    Returns:
        Updated after an installation, Ready when one waits for its restart, Checked when nothing is offered.

    Raises:
        UnconfirmedSlotError: The running slot must be confirmed first.
    """
    began = device.monotonic()
    with session(device) as opened:
        booted = opened.view.booted
        running = running_release(device, opened.state, booted=booted)
        _require_confirmed(opened)
        ready = _finish_earlier(opened, running)
        if ready is not None:
            return ready
        checked_at = opened.state.checked_at
        answered = ask(opened, running)
        if not isinstance(answered.decision, Offer):
            return _checked(opened, answered, running, checked_at=checked_at)
        entry = answered.decision.entry
        sought = entry.release_id(answered.policy.product)
        try:
            return _install(opened, answered, entry, running, began=began, progress=progress)
        except _WaitForConnection as waiting:
            return _checked(opened, answered, running, checked_at=checked_at, waits=waiting.reason)
        except OverhaulError as error:
            report(
                device,
                channel=answered.facts.channel,
                running=running,
                sought=sought,
                outcome=ReportOutcome.FAILED,
                seconds=device.monotonic() - began,
                error=error,
                update_id=opened.state.target.update_id if opened.state.target is not None else "",
            )
            raise


class _WaitForConnection(Exception):
    """The update is left for a connection that is not metered; nothing was begun."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def _checked(opened: Session, answered: Answered, running: ReleaseId, *, checked_at: int, waits: str = "") -> Checked:
    """Report the check, and return its answer."""
    device = opened.device
    report(
        device,
        channel=answered.facts.channel,
        running=running,
        sought=None,
        outcome=ReportOutcome.CHECKED,
        seconds=max(0, device.now() - checked_at) if checked_at else 0.0,
    )
    return Checked(running=running, decision=answered.decision, repository_changed=answered.changed, waits=waits)


def arm(opened: Session) -> None:
    """Have the boot loader try the verified target, and note that (steps 5 and 6)."""
    target = opened.state.target
    if target is None:
        return
    opened.device.boot.try_next(target.slot, attempts=opened.device.settings.boot.attempts)
    armed = msgspec.structs.replace(target, armed_in_boot=opened.view.boot_id)
    opened.save(msgspec.structs.replace(opened.state, phase=Phase.AWAITING_REBOOT, target=armed))


def call_off(opened: Session, *, reason: str) -> None:
    """Take back a target that has not run yet; the old slot simply goes on."""
    target = opened.state.target
    if target is None:
        return
    opened.device.boot.mark_bad(target.slot)
    idle = msgspec.structs.replace(opened.state, phase=Phase.IDLE, target=None)
    opened.save(with_event(idle, event_of(target, EventKind.CANCELLED, now=opened.device.now(), detail=reason)))
    report_target(opened, target, ReportOutcome.CANCELLED)


def report_target(opened: Session, target: Target, outcome: ReportOutcome, *, seconds: float = 0.0) -> None:
    """Report how far the update to `target` came; going back by hand is none."""
    device = opened.device
    if not target.update_id:
        return
    report(
        device,
        channel=followed_channel(device),
        running=running_release(device, opened.state, booted=target.fallback),
        sought=target.content.release,
        outcome=outcome,
        seconds=seconds,
        update_id=target.update_id,
    )


def _require_confirmed(opened: Session) -> None:
    booted = opened.view.booted
    status = opened.device.boot.state(booted).status
    if status is not SlotStatus.GOOD:
        raise UnconfirmedSlotError(slot=booted, status=status)


def _finish_earlier(opened: Session, running: ReleaseId) -> Ready | None:
    """Go on with an update that is installed already, unless its release is kept from the device meanwhile."""
    target = opened.state.target
    if target is None or opened.state.phase not in {Phase.INSTALLED, Phase.AWAITING_REBOOT}:
        return None
    reason = _kept_from_it(opened, running, target)
    if reason:
        call_off(opened, reason=reason)
        return None
    # Whoever configured the device since then means the system that comes, too.
    carry_into_waiting(opened)
    if opened.state.phase is Phase.INSTALLED:
        arm(opened)
    # Heard of, so that it is not taken for lost while it waits for its restart.
    report_target(opened, target, ReportOutcome.WAITING)
    answer = _restart_into(opened, target)
    return Ready(release=target.content.release, slot=target.slot, restart=answer)


def _kept_from_it(opened: Session, running: ReleaseId, target: Target) -> str:
    """Return why the release is kept from this device by now; empty when it is not."""
    try:
        answered = ask(opened, running)
    except NetworkError:
        # The update was verified when it was installed; a device without network may still restart into it.
        return ""
    entry = answered.policy.entry(target.content.release)
    if entry is None:
        return ""
    if entry.recall is not None:
        return "it was recalled before it ran"
    is_shut = any(
        reason.cause is Cause.ROLLOUT and reason.release == (entry.version, entry.build_id)
        for reason in answered.decision.reasons
    )
    return f"its rollout {entry.rollout.why_shut(opened.device.now())}" if is_shut and entry.rollout is not None else ""


def _restart_into(opened: Session, target: Target) -> RestartAnswer:
    """Ask for the restart, and report that the device goes down; and when it then does not, that it waits."""
    announced = False

    def announce() -> None:
        nonlocal announced
        announced = True
        report_target(opened, target, ReportOutcome.RESTARTING)

    answer = ask_for_restart(opened.device, urgent=target.urgent, announce=announce)
    if announced and answer.restart is not Restart.REQUESTED:
        report_target(opened, target, ReportOutcome.WAITING)
    return answer


def _install(
    opened: Session, answered: Answered, entry: PolicyEntry, running: ReleaseId, *, began: float, progress: Progress
) -> Updated:
    device = opened.device
    release = read_release(answered, entry.release_id(answered.policy.product))
    source = device.slots[opened.view.booted]
    source_content = _running_content(opened, answered, running)
    slot = idle_slot(device.slots, device.boot, opened.state)
    _refuse_unfit(slot, release)
    device.boot.require_ready(slot.name)
    _wait_if_metered(device, entry)
    content = device.open_content()
    chains = _chains_to(answered, release, source_content.index_sha256)
    cost = content.preview(release, source=source.path, source_index=source_content.index_sha256, chains=chains)
    _refuse_unaffordable(device, cost)
    _wait_if_metered(device, entry, download_bytes=cost.download_bytes)
    configuration = prepare_to_carry(device, answered, booted=opened.view.booted, running=running, release=release)

    target = _begin(opened, release, slot, source_content, urgent=entry.urgent)
    device.boot.mark_bad(slot.name)
    work = content.assemble(
        release,
        target=slot.path,
        source=source.path,
        source_index=source_content.index_sha256,
        chains=chains,
        progress=progress,
    )
    carry_over(device, configuration, slot=slot.name)
    _note_installed(opened, target)
    arm(opened)
    seconds = device.monotonic() - began
    report_target(opened, target, ReportOutcome.INSTALLED, seconds=seconds)
    return Updated(
        from_release=running,
        to_release=release.id,
        slot=slot.name,
        image_bytes=release.image.size,
        way=str(work.way),
        bytes_received=device.traffic.bytes_received,
        requests=device.traffic.requests,
        reused_bytes=work.kept_bytes + work.reused_bytes,
        neighbour_bytes=device.traffic.neighbour_bytes,
        repaired_chunks=work.repaired_chunks,
        seconds=seconds,
        peak_memory_bytes=device.peak_memory(),
        restart=_restart_into(opened, target),
    )


def _running_content(opened: Session, answered: Answered, running: ReleaseId) -> SlotContent:
    """Return what is known of the running slot; what a factory wrote is looked up among the published releases."""
    known = opened.state.slots.get(opened.view.booted)
    if known is not None and known.index_sha256 is not None:
        return known
    try:
        image = read_release(answered, running).image
    except UnknownTargetError:
        return SlotContent(release=running)
    return SlotContent(release=running, index_sha256=image.index.sha256, image_size=image.size)


def _chains_to(answered: Answered, release: Release, source_index: str | None) -> tuple[tuple[DeltaRef, ...], ...]:
    """Return deltas that lead over releases this device skipped, when none leads to `release` directly."""

    def read(between: ReleaseId) -> Release | None:
        try:
            return read_release(answered, between)
        except TrustError:
            # Pruned, or not what it should be: there are other ways.
            return None

    return find_chains(release, source_index, read=read)


def _wait_if_metered(device: Device, entry: PolicyEntry, *, download_bytes: int | None = None) -> None:
    reason = reason_to_wait(device, entry, download_bytes=download_bytes)
    if reason:
        raise _WaitForConnection(reason)


def _refuse_unfit(slot: Slot, release: Release) -> None:
    refuse_mounted(slot)
    size = slot_size(slot)
    if size < release.image.size:
        raise SlotTooSmallError(slot=slot, size_bytes=size, needed_bytes=release.image.size)


def _refuse_unaffordable(device: Device, cost: Cost) -> None:
    free_memory = device.settings.limits.memory_bytes or device.free_memory()
    if free_memory is not None and cost.memory_bytes > free_memory:
        raise NotEnoughMemoryError(needed_bytes=cost.memory_bytes, free_bytes=free_memory)
    directory = device.states.path.parent
    free_space = device.free_space(directory)
    if cost.scratch_bytes > free_space:
        raise NotEnoughSpaceError(directory=directory, needed_bytes=cost.scratch_bytes, free_bytes=free_space)


def _begin(opened: Session, release: Release, slot: Slot, source_content: SlotContent, *, urgent: bool) -> Target:
    state, booted = opened.state, opened.view.booted
    content = SlotContent(release=release.id, index_sha256=release.image.index.sha256, image_size=release.image.size)
    is_resumed = state.target is not None and state.target.content == content
    target = Target(
        slot=slot.name,
        content=content,
        fallback=booted,
        urgent=urgent,
        update_id=(state.target.update_id if state.target is not None and is_resumed else "") or secrets.token_hex(16),
    )
    others = {name: known for name, known in state.slots.items() if name != slot.name}
    begun = msgspec.structs.replace(
        state, phase=Phase.INSTALLING, target=target, slots={**others, booted: source_content}
    )
    if not is_resumed:
        begun = with_event(begun, event_of(target, EventKind.STARTED, now=opened.device.now()))
    opened.save(begun)
    return target


def _note_installed(opened: Session, target: Target) -> None:
    state = opened.state
    installed = msgspec.structs.replace(
        state, phase=Phase.INSTALLED, slots={**state.slots, target.slot: target.content}
    )
    opened.save(with_event(installed, event_of(target, EventKind.INSTALLED, now=opened.device.now())))
