"""Reads launch profiles: files that say where and on how many processes to train, but not what."""

from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from distrain.config.profile import LaunchOptions
from distrain.config.validation import describe
from distrain.errors import LaunchError
from distrain.launchers.accelerate import is_native, read_native, read_yaml
from distrain.messages import nearest


def builtin_profiles() -> dict[str, Path]:
    """Return the launch profiles that ship with distrain, by name; `accelerate-` ones are files of accelerate."""
    folder = Path(str(resources.files("distrain") / "launch"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_launch_options(reference: str | None, options: LaunchOptions) -> LaunchOptions:
    """Return the options of a launch profile, if one is named, overridden by those of the command line."""
    files = read_launch_profile(reference) if reference is not None else LaunchOptions()
    if options.accelerate_config is not None:
        files = read_native(Path(options.accelerate_config)).merged_over(files)
    return options.merged_over(files)


def read_launch_profile(reference: str) -> LaunchOptions:
    """Read a built-in launch profile by name, or a file; raises `LaunchError` where it is not a launch profile."""
    path = Path(reference).expanduser()
    if path.suffix not in {".yaml", ".yml", ".json"}:
        found = builtin_profiles()
        if reference not in found:
            hint = nearest(reference, found, count=1) or f"; use {', '.join(found)}, or a YAML file"
            raise LaunchError(f"unknown launch profile {reference!r}{hint}")
        path = found[reference]
    tree = read_yaml(path)
    if is_native(tree):
        return read_native(path)
    try:
        options = LaunchOptions.model_validate(tree)
    except ValidationError as error:
        fault = describe(error, LaunchOptions, tree, noun="it")
        raise LaunchError(
            f"launch profile {reference}: {fault} (its keys: {', '.join(LaunchOptions.model_fields)})"
        ) from None
    if options.accelerate_config is not None:
        config = path.parent / options.accelerate_config
        return options.merged_over(read_native(config)).model_copy(update={"accelerate_config": str(config.absolute())})
    return options
