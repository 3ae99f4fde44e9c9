"""The commented configuration that `overhaul device init` writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the person said; everything else is written as a comment with its default."""

    product: str
    variant: str
    arch: str
    channel: str | None
    version: str | None
    build_id: str | None
    urls: Sequence[str]
    allow_http: bool
    slots: Mapping[str, str]
    root_metadata: str
    state_directory: str
    boot_backend: str
    boot_file: str
    report_url: str
    #: Only systemd-boot wants them; None: the default.
    boot_kernel: str | None = None
    boot_initrd: str | None = None
    boot_options: str | None = None
    carry: str = "nothing"


def render_template(answers: Answers) -> str:
    """Return the text of a configuration that holds `answers`."""
    slots = "\n".join(f"{name} = {_text(path)}" for name, path in answers.slots.items())
    urls = ", ".join(_text(url) for url in answers.urls)
    return f"""\
# Overhaul, this device. `overhaul device status` shows what it means; every key is checked, misspelt ones are refused.
# Relative paths begin at this file's directory.

product = {_text(answers.product)}
variant = {_text(answers.variant)}
arch = {_text(answers.arch)}
# Left out, the channel is OVERHAUL_CHANNEL of /etc/os-release.
{_given("channel", answers.channel, "stable")}
# What runs now, when os-release says neither IMAGE_VERSION (or VERSION_ID) nor BUILD_ID. After the first update the
# agent knows it by itself.
{_given("version", answers.version, "1.0")}
{_given("build_id", answers.build_id, "20260101")}

# The repository's first root metadata: the anchor of all trust. Bring it here over a way you trust.
root_metadata = {_text(answers.root_metadata)}
# Outside the slots: trust, state and the random rollout id must survive a switch.
state_directory = {_text(answers.state_directory)}

[repository]
# The first one is preferred, the others are mirrors of it.
urls = [{urls}]
# Plain http is refused unless this says otherwise.
allow_http = {str(answers.allow_http).lower()}
# proxy = "http://proxy.example.com:3128"
# max_bytes_per_s = 1000000
# ca_file = "/etc/overhaul/ca.pem"
# "defer": over a metered connection (NetworkManager says which is) only updates up to so many bytes and urgent ones.
# metered = "allow"
# metered_max_bytes = 0
# Whether images built on demand, signed by the builds key, are taken.
# accept_builds = false

[slots]
# Block devices (or files, for a virtual device), by the names the boot loader uses.
{slots}

[boot]
# "grub": a grubenv file, see deploy/grub; "systemd-boot": the directory where the boot partition is mounted;
# "uboot": the fw_env.config of its environment, see deploy/u-boot;
# "file": a JSON file, for virtual devices and loaders of your own.
backend = {_text(answers.boot_backend)}
file = {_text(answers.boot_file)}
# How often a new slot may try to come up before the old one boots again (1 to 9).
attempts = 3
# For systemd-boot, which reads no slot: what is copied out of one to the boot partition, and the command line.
{_given("kernel", answers.boot_kernel, "/vmlinuz")}
{_given("initrd", answers.boot_initrd, "/initrd.img")}
{_given("options", answers.boot_options, "root=PARTLABEL=root-{slot} ro panic=10")}

[health]
# What must be true in the new slot before it is confirmed. A text runs in /bin/sh, a list runs as it is.
commands = []
units = []
budget_s = 300
# Try a failed command again after this long, within the budget; 0: never.
retry_s = 0
# Put before each command, to check inside a container; {{slot}} and {{path}} are the running slot's name and path.
# enter = ["nsenter", "--target", "1234", "--all"]

[reboot]
# "logind": the agent asks for the restart itself; "never": that is left to you.
policy = "never"
# When it may; days and a time zone may be left out, all of it: at any hour. Urgent releases do not wait.
# window = "Mon-Fri 22:00-05:00; Sat,Sun 00:00-24:00 Europe/Berlin"
# How long to wait for programs that inhibit a shutdown.
inhibitor_wait_s = 300

[limits]
# Memory an update may use; 0: what is free when it begins.
memory_bytes = 0

[configuration]
# "merged": what was changed in /etc comes along to the new slot, merged with what the release changed, if the initial
# RAM file system lays the slot's layer over /etc. "nothing": the new slot has the /etc of its release.
carry = {_text(answers.carry)}
# Of these the device's own always stays.
keep = ["/etc/machine-id", "/etc/hostname", "/etc/ssh/ssh_host_*"]
# Of these the release's is always taken: programs make them, and of another system they are wrong.
follow = ["/etc/ld.so.cache", "/etc/udev/hwdb.bin"]

[share]
# Where to give neighbours what this device has of releases; empty: nothing is given.
listen = ""
max_bytes_per_s = 1000000
max_bytes_per_day = 4000000000
# Who is asked before the repository, such as "192.168.1.5:7373".
neighbours = []
# Neighbours without a delta still have the release: how many bytes of it are taken to save one from the repository.
max_bytes_per_saved_byte = 8
# Find neighbours, and be found, by multicast DNS.
discover = false

[reports]
# Where to tell how updates went; nothing is sent while it is empty, and never anything that names this device.
url = {_text(answers.report_url)}
"""


def _given(key: str, value: str | None, example: str) -> str:
    return f"{key} = {_text(value)}" if value is not None else f"# {key} = {_text(example)}"


def _text(value: str) -> str:
    """Return a TOML basic string: JSON's escapes are a part of TOML's, which wants one for U+007F as well."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
