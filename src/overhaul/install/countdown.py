"""The rules by which a boot loader counts attempts and falls back: the one place where they are written down.

Every backend keeps the same few variables, in the style RAUC uses with GRUB:

    ORDER    slot names, the first choice first
    X_OK     1 when slot X is confirmed
    X_TRY    how often slot X may still be tried while it is not confirmed, 0 to 9

    X_OK=1           good     boots, is never counted
    X_OK=0, X_TRY>0  trial    boots, and the loader takes one attempt away before it does
    X_OK=0, X_TRY=0  bad      passed over

`deploy/grub/overhaul.cfg` says the same in GRUB's language, and a test runs both over every state. This module
promises no durability: it turns variables into variables, and the backends store them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from overhaul.errors import InputError
from overhaul.install.boot import SlotBootState, SlotStatus

#: GRUB's language cannot subtract, so its script looks attempts up among the digits.
MAX_ATTEMPTS = 9

#: A slot's name is part of a variable's name in the boot loader.
SlotName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9]{0,15}\Z")]


class SlotCounter(msgspec.Struct, frozen=True, kw_only=True):
    """The variables of one slot."""

    is_ok: bool
    attempts_left: Annotated[int, msgspec.Meta(ge=0, le=MAX_ATTEMPTS)] = 0

    @property
    def is_bootable(self) -> bool:
        """Whether the loader may choose the slot."""
        return self.is_ok or self.attempts_left > 0


class BootVariables(msgspec.Struct, frozen=True, kw_only=True):
    """All variables; `order` names every slot once."""

    order: tuple[SlotName, ...]
    slots: Mapping[SlotName, SlotCounter]


class AttemptsError(InputError):
    """A number of attempts that no boot loader could count down."""

    def __init__(self, *, attempts: int) -> None:
        self.attempts = attempts
        super().__init__(f"{attempts} boot attempts cannot be counted; ask for 1 to {MAX_ATTEMPTS}.")


class UnknownSlotError(InputError):
    """A slot that the configuration does not name."""

    def __init__(self, *, slot: str, known: Sequence[str]) -> None:
        self.slot = slot
        self.known = tuple(known)
        super().__init__(f"There is no slot {slot!r}; the configuration names {', '.join(known)}.")


def first_variables(slots: Sequence[str]) -> BootVariables:
    """Return the variables of a device that was never updated: the first slot is good, the others are bad."""
    return BootVariables(
        order=tuple(slots), slots={slot: SlotCounter(is_ok=position == 0) for position, slot in enumerate(slots)}
    )


def slot_state(variables: BootVariables, slot: str) -> SlotBootState:
    """Return what the loader would do with `slot`."""
    counter = _counter(variables, slot)
    if counter.is_ok:
        return SlotBootState(status=SlotStatus.GOOD, attempts_left=0)
    status = SlotStatus.TRIAL if counter.attempts_left else SlotStatus.BAD
    return SlotBootState(status=status, attempts_left=counter.attempts_left)


def chosen_slot(variables: BootVariables) -> str:
    """Return the slot that boots now.

    When none is bootable the first of the order is tried all the same: a device that starts nothing cannot be
    helped from afar. The rules of the agent never lead there.
    """
    return next((slot for slot in variables.order if variables.slots[slot].is_bootable), variables.order[0])


def after_boot(variables: BootVariables) -> BootVariables:
    """Return the variables as the loader leaves them when it starts the chosen slot."""
    slot = chosen_slot(variables)
    counter = variables.slots[slot]
    if counter.is_ok or counter.attempts_left == 0:
        return variables
    return _with_counter(variables, slot, SlotCounter(is_ok=False, attempts_left=counter.attempts_left - 1))


def with_bad(variables: BootVariables, slot: str) -> BootVariables:
    """Return the variables with `slot` never chosen, and last in the order."""
    _counter(variables, slot)
    changed = _with_counter(variables, slot, SlotCounter(is_ok=False))
    return msgspec.structs.replace(changed, order=(*_without(variables.order, slot), slot))


def with_trial(variables: BootVariables, slot: str, *, attempts: int) -> BootVariables:
    """Return the variables with `slot` chosen first, `attempts` times at most."""
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise AttemptsError(attempts=attempts)
    _counter(variables, slot)
    changed = _with_counter(variables, slot, SlotCounter(is_ok=False, attempts_left=attempts))
    return msgspec.structs.replace(changed, order=(slot, *_without(variables.order, slot)))


def with_good(variables: BootVariables, slot: str) -> BootVariables:
    """Return the variables with `slot` confirmed and first in the order; the others keep what they were."""
    _counter(variables, slot)
    changed = _with_counter(variables, slot, SlotCounter(is_ok=True))
    return msgspec.structs.replace(changed, order=(slot, *_without(variables.order, slot)))


def parse_variables(environment: Mapping[str, str], slots: Sequence[str]) -> BootVariables:
    """Return the variables of `slots` in an environment, read as the scripts in `deploy` read them.

    A variable that is missing has the value of a device that was never updated; attempts that are not one digit
    are none.
    """
    first = first_variables(slots)
    counters: dict[str, SlotCounter] = {}
    for slot in slots:
        ok = environment.get(f"{slot}_OK", "1" if first.slots[slot].is_ok else "0")
        attempts = environment.get(f"{slot}_TRY", "0")
        counters[slot] = SlotCounter(
            is_ok=ok == "1", attempts_left=int(attempts) if re.fullmatch(f"[0-{MAX_ATTEMPTS}]", attempts) else 0
        )
    named = [slot for slot in dict.fromkeys(environment.get("ORDER", "").split()) if slot in counters]
    order = (*named, *(slot for slot in slots if slot not in named))
    return BootVariables(order=order, slots=counters)


def render_variables(variables: BootVariables) -> dict[str, str]:
    """Return the environment that holds `variables`."""
    environment = {"ORDER": " ".join(variables.order)}
    for slot, counter in sorted(variables.slots.items()):
        environment[f"{slot}_OK"] = "1" if counter.is_ok else "0"
        environment[f"{slot}_TRY"] = str(counter.attempts_left)
    return environment


def _counter(variables: BootVariables, slot: str) -> SlotCounter:
    if slot not in variables.slots:
        raise UnknownSlotError(slot=slot, known=variables.order)
    return variables.slots[slot]


def _with_counter(variables: BootVariables, slot: str, counter: SlotCounter) -> BootVariables:
    return msgspec.structs.replace(variables, slots={**variables.slots, slot: counter})


def _without(order: Sequence[str], slot: str) -> tuple[str, ...]:
    return tuple(name for name in order if name != slot)
