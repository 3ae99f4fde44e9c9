"""One update, from the offer to a slot that the boot loader will try.

The order of the durable steps is what makes a kill or a power cut harmless between any two of them:

    1  state INSTALLING     the target is named, what its slot held is forgotten
    2  boot.mark_bad        nobody boots the slot from here on
    3  assemble             bytes; returns only after all of them were read back
    4  state INSTALLED      the slot's content is known
    5  boot.try_next        the boot loader will try it, a counted number of times
    6  state AWAITING_REBOOT

Run again after a kill, steps 1 to 3 find most bytes in place, and 5 and 6 are simply made again.
"""

from pathlib import Path

import msgspec

from overhaul.agent.beginning import Session, running_release, session
from overhaul.agent.checking import Answered, ask, read_release
from overhaul.agent.outcomes import Checked, Ready, Updated
from overhaul.agent.ports import Cost, Device
from overhaul.agent.recovery import event_of
from overhaul.agent.reporting import ReportOutcome, report
from overhaul.agent.restarting import ask_for_restart
from overhaul.errors import DeviceError, NetworkError, OverhaulError
from overhaul.install.boot import SlotStatus
from overhaul.install.slots import Slot, SlotTooSmallError, idle_slot, refuse_mounted, slot_size
from overhaul.install.state import EventKind, Phase, SlotContent, Target, with_event
from overhaul.policy.document import PolicyEntry
from overhaul.policy.selection import Offer
from overhaul.progress import Progress
from overhaul.release.record import Release, ReleaseId
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
        answered = ask(opened, running)
        if not isinstance(answered.decision, Offer):
            return Checked(running=running, decision=answered.decision, repository_changed=answered.changed)
        entry = answered.decision.entry
        sought = entry.release_id(answered.policy.product)
        try:
            updated = _install(opened, answered, entry, running, began=began, progress=progress)
        except OverhaulError as error:
            report(
                device,
                channel=answered.facts.channel,
                running=running,
                sought=sought,
                outcome=ReportOutcome.FAILED,
                seconds=device.monotonic() - began,
                error=error,
            )
            raise
        report(
            device,
            channel=answered.facts.channel,
            running=running,
            sought=sought,
            outcome=ReportOutcome.INSTALLED,
            seconds=updated.seconds,
        )
        return updated


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


def _require_confirmed(opened: Session) -> None:
    booted = opened.view.booted
    status = opened.device.boot.state(booted).status
    if status is not SlotStatus.GOOD:
        raise UnconfirmedSlotError(slot=booted, status=status)


def _finish_earlier(opened: Session, running: ReleaseId) -> Ready | None:
    """Go on with an update that is installed already, unless its release was recalled meanwhile."""
    target = opened.state.target
    if target is None or opened.state.phase not in {Phase.INSTALLED, Phase.AWAITING_REBOOT}:
        return None
    if _was_recalled(opened, running, target):
        call_off(opened, reason="it was recalled before it ran")
        return None
    if opened.state.phase is Phase.INSTALLED:
        arm(opened)
    answer = ask_for_restart(opened.device, urgent=target.urgent)
    return Ready(release=target.content.release, slot=target.slot, restart=answer)


def _was_recalled(opened: Session, running: ReleaseId, target: Target) -> bool:
    try:
        policy = ask(opened, running).policy
    except NetworkError:
        # The update was verified when it was installed; a device without network may still restart into it.
        return False
    entry = policy.entry(target.content.release)
    return entry is not None and entry.recall is not None


def _install(
    opened: Session, answered: Answered, entry: PolicyEntry, running: ReleaseId, *, began: float, progress: Progress
) -> Updated:
    device = opened.device
    release = read_release(answered, entry.release_id(answered.policy.product))
    source = device.slots[opened.view.booted]
    source_content = _running_content(opened, answered, running)
    slot = idle_slot(device.slots, device.boot, opened.state)
    content = device.open_content()
    _refuse_unfit(slot, release)
    cost = content.preview(release, source=source.path, source_index=source_content.index_sha256)
    _refuse_unaffordable(device, cost)

    _begin(opened, release, slot, source_content, urgent=entry.urgent)
    device.boot.mark_bad(slot.name)
    work = content.assemble(
        release, target=slot.path, source=source.path, source_index=source_content.index_sha256, progress=progress
    )
    _note_installed(opened)
    arm(opened)
    return Updated(
        from_release=running,
        to_release=release.id,
        slot=slot.name,
        image_bytes=release.image.size,
        way=str(work.way),
        bytes_received=device.traffic.bytes_received,
        requests=device.traffic.requests,
        reused_bytes=work.kept_bytes + work.reused_bytes,
        repaired_chunks=work.repaired_chunks,
        seconds=device.monotonic() - began,
        peak_memory_bytes=device.peak_memory(),
        restart=ask_for_restart(device, urgent=entry.urgent),
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


def _begin(opened: Session, release: Release, slot: Slot, source_content: SlotContent, *, urgent: bool) -> None:
    state, booted = opened.state, opened.view.booted
    content = SlotContent(release=release.id, index_sha256=release.image.index.sha256, image_size=release.image.size)
    target = Target(slot=slot.name, content=content, fallback=booted, urgent=urgent)
    others = {name: known for name, known in state.slots.items() if name != slot.name}
    begun = msgspec.structs.replace(
        state, phase=Phase.INSTALLING, target=target, slots={**others, booted: source_content}
    )
    if state.target is None or state.target.content != content:
        begun = with_event(begun, event_of(target, EventKind.STARTED, now=opened.device.now()))
    opened.save(begun)


def _note_installed(opened: Session) -> None:
    state, target = opened.state, opened.state.target
    if target is None:
        return
    installed = msgspec.structs.replace(
        state, phase=Phase.INSTALLED, slots={**state.slots, target.slot: target.content}
    )
    opened.save(with_event(installed, event_of(target, EventKind.INSTALLED, now=opened.device.now())))
