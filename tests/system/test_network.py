"""The interface of this machine is found by its address."""

import os
import shutil
import subprocess
import sys

import pytest

from distrain.errors import LaunchError
from distrain.system.network import find_interface

IN_NAMESPACE = """
ip link set lo up && ip address add 10.9.8.7/24 dev lo label lo:1
exec "$0" -c 'from distrain.system.network import find_interface; print(find_interface("10.9.8.7"))'
"""


def test_interface_is_found_by_its_address() -> None:
    assert find_interface("127.0.0.1") == "lo"


def test_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(LaunchError, match="no network interface of this machine has the address 192\\.0\\.2\\.77"):
        find_interface("192.0.2.77")


def test_interface_of_a_second_address_is_found_without_its_label() -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, for a network namespace")
    namespace = ["unshare", "--net"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode != 0:
        pytest.skip("network namespaces are not permitted here")
    said = subprocess.check_output([*namespace, "sh", "-c", IN_NAMESPACE, sys.executable], text=True)
    assert said == "lo\n"
