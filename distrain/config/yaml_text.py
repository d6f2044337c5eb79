"""Reads YAML written by a user; a key given twice in one mapping is an error, where PyYAML would use the last."""

from collections.abc import Hashable
from typing import Any

import yaml


class YamlError(ValueError):
    """Text that is not valid YAML; the message begins with line and column."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - yaml's signature
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value} is given twice, first at line {seen[name]}; remove one",
                        problem_mark=key.start_mark,
                    )
                seen[name] = line
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


def read_yaml_text(text: str) -> Any:
    """Return the value of YAML text; raises `YamlError` where it is not valid YAML, or gives a key twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"at line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{place}{getattr(error, 'problem', None) or 'it is not valid YAML'}") from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except ValueError as error:  # a date or a number that does not exist, such as 2024-13-45
        raise YamlError(f"it has an invalid number or date ({str(error).partition(';')[0]})") from None
