"""Options that several commands share: those that describe a training run."""

from __future__ import annotations

import click

preset_option = click.option("--preset", metavar="NAME", help="Built-in config: 1b, nano, demo.")
config_option = click.option("--config", metavar="FILE", help="TOML merged over the preset.")
experts_option = click.option(
    "--experts", metavar="A,B", help="Experts, in the order of their phases."
)
hours_option = click.option(
    "--hours", type=float, help="Hours of the whole run, the final save included."
)
data_option = click.option(
    "--data",
    metavar="SOURCE",
    multiple=True,
    help="Training text: a file or folder (.jsonl .json .txt .md .parquet), or "
    "hf:DATASET[:SPLIT[:COLUMN]] (repeatable).",
)
lenient_option = click.option(
    "--data-lenient",
    is_flag=True,
    help="Train even if more than a tenth of the texts can't be learnt.",
)
overrides_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a config field: section.field=value (repeatable).",
)


name_option = click.option("--name", metavar="NAME", help="Name of the run in the list of runs.")
note_option = click.option("--note", metavar="TEXT", help="A note on the run.")
log_to_option = click.option(
    "--log-to",
    type=click.Choice(("tensorboard", "wandb", "trackio")),
    multiple=True,
    help="Also send the metrics there (repeatable).",
)


def split_names(text: str | None) -> list[str] | None:
    """The names of a comma-separated option; None if the option was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def with_lenient(overrides: tuple[str, ...], lenient: bool) -> tuple[str, ...]:
    """The overrides with that of `--data-lenient`."""
    return (*overrides, "data.lenient=true") if lenient else overrides
