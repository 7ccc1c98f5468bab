"""The form of the Train screen."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label, Select

from gladius_tui.app.model.form import Form
from gladius_tui.app.widgets.expert_list import ExpertList
from gladius_tui.app.widgets.form_fields import form_row, select, set_options, text_input

_DEVICES = ("auto", "cuda", "mps", "cpu")
_DEFAULT_PRESET = "nano"


class TrainForm(VerticalScroll):
    """Preset, experts, hours, data, device, overrides and a config file."""

    @dataclass(eq=False)
    class Changed(Message):
        """The user has changed a field."""

        form: Form

    def __init__(self) -> None:
        super().__init__(id="form", classes="pane form")
        self.border_title = "Run"
        self.ready = False
        """Whether the presets and experts are known."""
        self._custom_experts = False
        """Whether other experts than the preset's are selected."""
        self._preset_experts: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        presets = [(_DEFAULT_PRESET, _DEFAULT_PRESET)]
        yield from form_row("preset", select("preset", presets, _DEFAULT_PRESET))
        with Vertical(classes="field", id="experts-field"):
            yield Label("experts", markup=False)
            yield ExpertList()
        yield from form_row("hours", text_input("hours", "no limit"))
        yield from form_row(
            "data", text_input("data", "files, folders or hf:org/name", several=True)
        )
        devices = [(name, name) for name in _DEVICES]
        yield from form_row("device", select("device", devices, "auto"))
        yield from form_row("set", text_input("overrides", "section.field=value ...", several=True))
        yield from form_row("config", text_input("file", "a TOML file laid over the preset"))

    @property
    def value(self) -> Form:
        """The content of the form."""
        preset = self.query_one("#preset", Select).value
        experts = self.query_one(ExpertList).selected if self._custom_experts else None
        return Form(
            preset=str(preset) if self.ready else _DEFAULT_PRESET,
            file=self._text("file"),
            experts=experts,
            hours=self._text("hours"),
            data=self._text("data"),
            device=str(self.query_one("#device", Select).value),
            overrides=self._text("overrides"),
        )

    def _text(self, name: str) -> str:
        return self.query_one(f"#{name}", Input).value

    def set_options(self, presets: Sequence[str], experts: Mapping[str, str]) -> None:
        """Offer these presets, the first time, and experts (labels by name)."""
        with self.prevent(Select.Changed):
            if not self.ready:
                field = self.query_one("#preset", Select)
                set_options(field, [(name, name) for name in presets])
                field.value = _DEFAULT_PRESET if _DEFAULT_PRESET in presets else presets[0]
            self.query_one(ExpertList).set_experts(experts)
        self.ready = True

    def fill(self, options: Mapping[str, Any]) -> None:
        """Show the options of a `train` command."""
        texts = {
            "hours": "" if options.get("hours") is None else f"{options['hours']:g}",
            "data": shlex.join(options.get("data") or ()),
            "overrides": shlex.join(options.get("overrides") or ()),
            "file": options.get("config") or "",
        }
        with self.prevent(Select.Changed, Input.Changed):
            if options.get("preset"):
                self.query_one("#preset", Select).value = options["preset"]
            for name, text in texts.items():
                self.query_one(f"#{name}", Input).value = text
        if options.get("experts"):
            self._custom_experts = True
            self.query_one(ExpertList).select(options["experts"].split(","))

    def choose_experts(self, names: Sequence[str]) -> None:
        """Select these experts, as the user would."""
        self.query_one(ExpertList).select(names)
        self._on_selection_changed()

    def set_preset_experts(self, names: tuple[str, ...]) -> None:
        """The experts of the config; they are selected unless the user has selected others."""
        if names and not self._custom_experts:
            self._preset_experts = names
            self.query_one(ExpertList).select(names)

    def mark_bad(self, names: Collection[str]) -> None:
        """Mark the fields that keep the run from starting, and no others."""
        for name in ("file", "hours", "data", "overrides"):
            self.query_one(f"#{name}", Input).set_class(name in names, "-bad")

    def focus_first(self) -> None:
        """Focus the first field."""
        self.query_one("#preset", Select).focus()

    @on(Input.Changed)
    @on(Select.Changed)
    def _on_field_changed(self, event: Input.Changed | Select.Changed) -> None:
        event.stop()
        if event.control.id == "preset":
            self._custom_experts = False
        self._post_changed()

    @on(ExpertList.SelectionChanged)
    def _on_selection_changed(self) -> None:
        selected = self.query_one(ExpertList).selected
        self._custom_experts = set(selected) != set(self._preset_experts)
        self._post_changed()

    @on(Input.Submitted)
    def _on_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.screen.focus_next()

    def _post_changed(self) -> None:
        if self.ready:
            self.post_message(self.Changed(self.value))
