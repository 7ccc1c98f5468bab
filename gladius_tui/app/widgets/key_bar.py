"""The last line of every screen: its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from textual.content import Content
from textual.screen import Screen

from gladius_tui.app.services import ModeScreen
from gladius_tui.app.widgets.clickable_line import ClickableLine

_GLOBAL_KEYS = 3
"""Help, palette and quit: always shown, at the end."""


@dataclass(frozen=True)
class _Key:
    key: str
    label: str
    action: str
    enabled: bool

    def content(self) -> Content:
        """The key and its label."""
        item = Content.assemble(
            (self.key, "bold $footer-key-foreground"), " ", (self.label, "$footer-foreground")
        )
        return item if self.enabled else item.stylize("dim")


class KeyBar(ClickableLine):
    """` p Pause  c Checkpoint ...  ? Help  ^p Commands  q Quit`, from the active bindings."""

    DEFAULT_CSS = "KeyBar { dock: bottom; }"

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_updated)

    def _bindings_updated(self, _: Screen) -> None:
        if self.screen.app.screen is self.screen:
            self.refresh()

    def render(self) -> Content:
        self.targets.clear()
        keys = self._keys()
        screen_keys, global_keys = keys[:-_GLOBAL_KEYS], keys[-_GLOBAL_KEYS:]
        room = self.size.width - 1 - sum(key.content().cell_length + 2 for key in global_keys)
        line = Content(" ")
        for key in screen_keys:
            part = key.content()
            if line.cell_length + part.cell_length + 2 > room:
                line = line.append("…  ")
                break
            line = self.add_target(line, part, key.action if key.enabled else "").append("  ")
        for key in global_keys:
            line = self.add_target(line, key.content(), key.action).append("  ")
        return line

    def _keys(self) -> list[_Key]:
        """All keys to show; the last three work on every screen."""
        screen = cast(ModeScreen, self.screen)
        keys: dict[str, _Key] = {}
        app_keys: dict[str, _Key] = {}
        for node, binding, enabled, _ in self.screen.active_bindings.values():
            action = binding.action
            if not binding.show or action in keys:
                continue
            key = self.app.get_key_display(binding)
            if node is self.app:
                if action not in app_keys or len(key) < len(app_keys[action].key):
                    app_keys[action] = _Key(key, binding.description, f"app.{action}", enabled)
            elif node is not self.screen:
                keys[action] = _Key(key, binding.description, f"focused.{action}", enabled)
            elif label := screen.key_label(action, binding.description):
                keys[action] = _Key(key, label, action, enabled)
        palette = _Key("^p", "Commands", "app.command_palette", True)
        help_key, *quit_key = (app_keys[action] for action in sorted(app_keys))  # help, leave
        return [*keys.values(), help_key, palette, *quit_key]
