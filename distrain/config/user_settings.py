"""Reads the user's own settings, which say whom runs notify: they belong neither to a recipe nor to a profile.

A run directory never contains them, so addresses with tokens stay with the user.
"""

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from distrain.config.section import Section
from distrain.config.validation import describe
from distrain.config.yaml_text import YamlError, read_yaml_text
from distrain.errors import LaunchError

Event = Literal["started", "finished", "failed", "stopped", "preempted", "stalled", "disk"]
EVENTS: tuple[Event, ...] = get_args(Event)


class EventHandler(Section):
    """What is called on events of a run: a webhook or a command."""

    webhook: str | None = Field(
        None, description="an http or https address, which gets a POST with JSON; may have ${NAME}"
    )
    command: str | None = Field(None, description="a command for the shell, which gets JSON on standard input")
    events: tuple[Event, ...] = Field(EVENTS, description="the events on which it is called")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("each entry of on_event needs either webhook or command")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://", "${")):
            raise ValueError("a webhook of on_event does not begin with http:// or https://")  # without the address
        return self


class UserSettings(Section):
    """The settings of a user, for all runs that the user starts."""

    on_event: tuple[EventHandler, ...] = Field((), description="what is called on events of a run")


def read_user_settings(path: Path) -> UserSettings:
    """Read the settings, empty without a file; raises `LaunchError` where they are invalid or cannot be read."""
    tree: object = None
    try:
        if not path.exists():
            return UserSettings()
        tree = read_yaml_text(path.read_text(encoding="utf-8"))
        return UserSettings() if tree is None else UserSettings.model_validate(tree)
    except ValidationError as error:
        raise LaunchError(f"{path}: {describe(error, UserSettings, tree, noun='it')}") from None
    except YamlError as error:
        raise LaunchError(f"{path} is not valid YAML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{path} cannot be read: {error}") from None
