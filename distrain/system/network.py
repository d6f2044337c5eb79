"""Finds the network address and interface of this node on the route to another node."""

import socket

import psutil

from distrain.errors import LaunchError


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return the host and the port of `host:port`, or `[host]:port` for an IPv6 address."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise LaunchError(
            f"--rendezvous {endpoint} is not of the form HOST:PORT; give an address of node 0 and a free port"
        )
    return host.strip("[]"), int(port)


def resolve(host: str) -> str:
    """Return the first address of a host; raises `LaunchError` where its name is unknown."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise LaunchError(f"--rendezvous host {host} is unknown on this machine ({error.strerror})") from None


def route_to(host: str, port: int) -> str:
    """Return this machine's address on the route to `host`; nothing is sent."""
    address = resolve(host)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError as error:
            raise LaunchError(f"--rendezvous host {host} is not reachable from here: {error.strerror}") from None
        return str(probe.getsockname()[0])


def find_interface(address: str) -> str:
    """Return the network interface that has an address of this machine."""
    for name, addresses in psutil.net_if_addrs().items():
        if address in {known.address.partition("%")[0] for known in addresses}:  # fe80::1%eth0
            return str(name).partition(":")[0]  # eth0:1 is the second address of eth0
    raise LaunchError(f"no network interface of this machine has the address {address}; give another --rendezvous")
