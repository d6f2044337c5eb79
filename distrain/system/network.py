"""Owns what a machine knows of its own network: the address and the interface on the way to another machine."""

import ctypes
import fcntl
import socket
import struct
from pathlib import Path

from distrain.errors import LaunchError

_SIOCGIFCONF = 0x8912  # every interface with an IPv4 address, also those that have a second one
_IFREQ_BYTES = 40  # struct ifreq of 64-bit Linux: a name of 16 bytes, then a socket address
_MAX_INTERFACES = 256


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return the host and the port of `host:port`, or `[host]:port` for an IPv6 address."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise LaunchError(
            f"--rendezvous {endpoint} is not of the form HOST:PORT; give an address of node 0 and a free port"
        )
    return host.strip("[]"), int(port)


def resolve(host: str) -> str:
    """Return the first address of a host; raises `LaunchError` where its name is not known."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise LaunchError(f"--rendezvous host {host} is not known here ({error.strerror})") from None


def route_to(host: str, port: int) -> str:
    """Return this machine's own address on the way to `host`; nothing is sent."""
    address = resolve(host)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError as error:
            raise LaunchError(f"--rendezvous host {host} cannot be reached from here: {error.strerror}") from None
        return str(probe.getsockname()[0])


def find_interface(address: str) -> str:
    """Return the network interface that has an address of this machine."""
    found = _ipv6_interfaces() if ":" in address else _ipv4_interfaces()
    if address not in found:
        raise LaunchError(f"no network interface of this machine has the address {address}; give another --rendezvous")
    return found[address]


def _ipv4_interfaces() -> dict[str, str]:
    buffer = ctypes.create_string_buffer(_IFREQ_BYTES * _MAX_INTERFACES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("iP", len(buffer), ctypes.addressof(buffer))
        (length, _) = struct.unpack("iP", fcntl.ioctl(probe, _SIOCGIFCONF, request))
    found = {}
    for start in range(0, length, _IFREQ_BYTES):
        name, address = buffer.raw[start : start + 16], buffer.raw[start + 20 : start + 24]
        found[socket.inet_ntoa(address)] = name.split(b"\0")[0].decode().partition(":")[0]  # eth0:1 is eth0's second
    return found


def _ipv6_interfaces() -> dict[str, str]:
    table = Path("/proc/net/if_inet6")
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines()] if table.exists() else []
    return {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0])): row[-1] for row in rows}
