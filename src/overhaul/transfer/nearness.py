"""Which addresses are of this machine's own network: private, link-local and loopback ones, and no others."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# Not `is_private` of the library: that also holds for addresses of documentation, benchmarks and translation.
_NEAR = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "127.0.0.0/8",
            "fc00::/7",
            "fe80::/10",
            "::1/128",
        ),
    )
)


def is_near(host: str) -> bool:
    """Tell whether `host` is an address, not a name, of a private or link-local network or of this machine."""
    try:
        address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _NEAR if network.version == address.version)


def split_address(text: str) -> tuple[str, int] | None:
    """Return host and port of `HOST:PORT` or `[HOST]:PORT` where the host is near, else None."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not port.isascii() or not port.isdecimal() or int(port) > 65535 or not is_near(host):
        return None
    return host, int(port)
