"""How many reports one sender may hand in: a bucket of tokens that fills with time. Pure; time is given."""

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address


class Allowance:
    """Lets each sender through `per_minute` times a minute, with bursts of as many.

    At most `remembered` senders are kept; beyond that the one not heard of for longest starts anew.
    """

    def __init__(self, *, per_minute: int, remembered: int = 10_000) -> None:
        self._burst = float(per_minute)
        self._per_second = per_minute / 60
        self._remembered = remembered
        self._senders: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, *, now: float) -> float:
        """Return 0 and count one report of `address`, or the seconds after which one will be let through."""
        sender = sender_of(address)
        tokens, since = self._senders.pop(sender, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - since) * self._per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
        self._senders[sender] = (tokens - 1 if wait == 0 else tokens, now)
        if len(self._senders) > self._remembered:
            self._senders.popitem(last=False)
        return wait


def sender_of(address: str) -> str:
    """Return what one sender is known by: IPv6 senders own a whole /64."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Address(int(parsed) >> 64 << 64))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
