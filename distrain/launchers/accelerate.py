"""Plans the processes of a node with accelerate, and reads and writes its configuration file."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distrain.config.profile import LaunchOptions, Profile
from distrain.config.validation import describe
from distrain.config.yaml_text import read_yaml_text
from distrain.errors import LaunchError
from distrain.launchers.plan import Plan
from distrain.messages import counted
from distrain.runs.directory import RunDirectory

# Keys of accelerate's file that distrain sets in the recipe: the key, and the recipe key to use instead.
_RECIPE_KEYS = {
    "mixed_precision": "precision",
    "fp16": "precision",
    "fp8_config": "precision",
    "downcast_bf16": "precision",
    "fsdp_config": "parallel.strategy=fsdp",
    "deepspeed_config": "parallel.strategy",
    "megatron_lm_config": "parallel.strategy",
    "parallelism_config": "parallel.strategy",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_accumulation_plugin": "train.micro_batch_size",
    "dynamo_backend": None,
    "dynamo_config": None,
}
_UNSET: tuple[object, ...] = (None, False, "no", "NO", {}, [])
_DISTRIBUTED_TYPES = {"NO", "MULTI_GPU", "MULTI_CPU"}


def plan(profile: Profile, run: Path) -> Plan:
    """Plan `accelerate launch` with a file in the run directory, or with the user's file.

    With the user's file, the values of the profile are also on the command line, where they override the file.
    """
    is_users = profile.accelerate_config is not None
    config = Path(profile.accelerate_config or RunDirectory(run).accelerate_config(profile.node_rank))
    argv = (
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        f"--config_file={config}",
        *(_arguments(profile) if is_users else ()),
        "-m",
        "distrain.worker",
        str(run),
    )
    files = {} if is_users else {config: yaml.safe_dump(native_config(profile), sort_keys=False)}
    return Plan(argv, cwd=Path.cwd(), env=profile.variables, files=files)


def native_config(profile: Profile) -> dict[str, Any]:
    """Return the profile as a configuration of accelerate.

    CPU processes have the type MULTI_GPU as well: for MULTI_CPU accelerate starts a single process, unless with MPI.
    """
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if profile.world_size > 1 else "NO",
        "use_cpu": profile.device == "cpu",
        "mixed_precision": "no",  # the recipe's precision decides
        "num_machines": profile.nodes,
        "num_processes": profile.world_size,
        "main_process_port": 0,  # a free port: with the default, two concurrent runs would collide
    }
    if profile.nodes > 1:
        host, port = profile.endpoint
        config |= {"machine_rank": profile.node_rank, "main_process_ip": host, "main_process_port": port}
        config |= {"same_network": True, "rdzv_backend": "static"}
    return config


def read_native(path: Path) -> LaunchOptions:
    """Read the launch options in accelerate's configuration file.

    Raises `LaunchError` where the file sets what belongs in the recipe, or a type that distrain does not support.
    """
    config = read_yaml(path)
    for key, recipe_key in _RECIPE_KEYS.items():
        if config.get(key) not in _UNSET:
            advice = f"use --set {recipe_key}" if recipe_key else "use --set compute.compile"
            raise LaunchError(f"{path} sets {key}={config[key]!r}, which belongs in the recipe; remove it ({advice})")
    kind = config.get("distributed_type", "NO")
    if kind not in _DISTRIBUTED_TYPES:
        raise LaunchError(f"{path} has distributed_type {kind}; use MULTI_GPU, MULTI_CPU or NO")
    count, nodes = config.get("num_processes", 1), config.get("num_machines", 1)
    if not isinstance(count, int) or not isinstance(nodes, int) or nodes < 1 or count < 1 or count % nodes:
        raise LaunchError(
            f"{path} has {counted(count, 'process', 'processes')} on {nodes} nodes; give a multiple of the nodes"
        )
    address, port = config.get("main_process_ip"), config.get("main_process_port")
    found = {
        "launcher": "accelerate",
        "device": "cpu" if config.get("use_cpu") or kind == "MULTI_CPU" else "cuda",
        "nodes": nodes,
        "node_rank": config.get("machine_rank") if nodes > 1 else None,
        "rendezvous": f"{address}:{port}" if nodes > 1 and address and port else None,
        "processes": count // nodes,
        "accelerate_config": str(path.absolute()),
    }
    try:
        return LaunchOptions.model_validate(found)
    except ValidationError as error:
        fault = describe(error, LaunchOptions, found, noun="it").replace("node_rank", "machine_rank")
        raise LaunchError(f"{path}: {fault}") from None


def is_native(tree: dict[str, Any]) -> bool:
    """Whether a file is a configuration of accelerate, by a key that each of those has."""
    return "distributed_type" in tree


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values; raises `LaunchError` where it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else read_yaml_text(text)
    except OSError as error:
        raise LaunchError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LaunchError(f"{path} cannot be read: it is not UTF-8 text") from None
    except ValueError as error:  # from JSON, or a YamlError
        raise LaunchError(f"{path} cannot be read as {path.suffix.removeprefix('.').upper()}: {error}") from None
    if not isinstance(tree, dict):
        raise LaunchError(f"{path} has no keys and values; `distrain launch show cpu-2` shows a launch profile")
    return tree


def _arguments(profile: Profile) -> tuple[str, ...]:
    options = [f"--num_machines={profile.nodes}", f"--num_processes={profile.world_size}"]
    if profile.nodes > 1:
        host, port = profile.endpoint
        options += [f"--machine_rank={profile.node_rank}", f"--main_process_ip={host}", f"--main_process_port={port}"]
        options += ["--same_network", "--rdzv_backend=static"]
    else:
        options += ["--main_process_port=0"]
    if profile.world_size > 1:
        options += ["--multi_gpu"]  # also on CPUs: for MULTI_CPU it would start a single process
    return tuple(options)
