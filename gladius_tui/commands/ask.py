"""The command `ask`: the student, and an expert beside it, answer a prompt of one's own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from engine.errors import GladiusError, MissingError, UsageError
from gladius_tui.shell import Options, command, print_stderr, print_stdout

if TYPE_CHECKING:
    from engine.events import AnyEvent, Question, QuestionAnswered
    from engine.workspace import Workspace


@command()
@click.argument("prompt")
@click.option("--expert", "experts", metavar="NAME", multiple=True, help="Ask it too (repeatable).")
@click.option("--checkpoint", metavar="WHICH", help="latest, best, or a step.")
@click.option(
    "--max-tokens", type=click.IntRange(1, 2048), default=128, help="Length of an answer [128]."
)
@click.option(
    "--temperature", type=click.FloatRange(0, 5), default=0.7, help="0: the most probable [0.7]."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of the sampling [0].")
@click.pass_obj
def ask(
    options: Options,
    prompt: str,
    experts: tuple[str, ...],
    checkpoint: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """Ask the student a question, side by side with an expert. PROMPT may be - for standard input.

    A running training answers between two steps, with the experts that it has in memory; else the
    finished model (or the newest checkpoint) and an expert of its run are loaded.
    """
    import secrets

    from engine.events import Question
    from engine.run.lock import lock_owner

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise UsageError('the prompt is empty; write one, such as: ask "Why is the sky blue?"')
    question = Question(
        id=secrets.token_hex(6),
        prompt=text.strip(),
        max_new_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    ws = options.workspace
    if lock_owner(ws, "train") is not None:
        if experts or checkpoint:
            raise UsageError(
                "a running training answers with what it has in memory; leave out --expert and "
                "--checkpoint, or stop it first: gladius_train stop"
            )
        _print(options, _from_running_job(ws, question))
    else:
        _ask_in_a_job(options, ws, question, experts, checkpoint)


def _from_running_job(ws: Workspace, question: Question) -> QuestionAnswered:
    from engine.events import QuestionAnswered
    from engine.run.control import attach

    with attach(ws, "train") as attachment:
        event = attachment.send(question)
    if not isinstance(event, QuestionAnswered):
        raise MissingError("the run ended before it answered; ask again: its model answers now")
    return event


def _ask_in_a_job(
    options: Options,
    ws: Workspace,
    question: Question,
    experts: tuple[str, ...],
    checkpoint: str | None,
) -> None:
    """Load the model in a job, and print its answer."""
    import msgspec

    from engine.checkpoint.layout import list_checkpoints
    from engine.events import LogLine, QuestionAnswered, RunEnded
    from engine.run.runner import run_job

    if not (ws.model_dir / "config.json").is_file() and not list_checkpoints(ws.checkpoints_dir):
        raise MissingError(
            f"no trained model in {ws.model_dir} and no checkpoint in {ws.checkpoints_dir}; "
            "train one with: gladius_train train"
        )
    config = {"question": msgspec.to_builtins(question), "checkpoint": checkpoint}
    config["experts"] = list(experts) or None
    failure = ""

    def on_event(event: AnyEvent) -> None:
        nonlocal failure
        match event:
            case QuestionAnswered():
                _print(options, event)
            case LogLine(level="warning") if not options.quiet:
                print_stderr(event.text)
            case RunEnded(status="failed"):
                failure = event.reason or "the job failed; see tmp/logs"

    code = run_job(ws, job="ask", config=msgspec.json.encode(config), on_event=on_event)
    if failure:
        print_stderr(f"error: {failure}")
    if code:
        raise click.exceptions.Exit(code)


def _print(options: Options, event: QuestionAnswered) -> None:
    from engine.events import encode
    from gladius_tui.answer_lines import answer_lines
    from gladius_tui.event_lines import Layout
    from gladius_tui.terminal import line_width, use_colour

    if options.json:
        print_stdout([encode(event).decode()])
        return
    if not event.answers:
        raise GladiusError(event.note or "nothing was answered")
    layout = Layout(colour=use_colour(sys.stdout), width=max(60, line_width(sys.stdout)))
    print_stdout(answer_lines(event, layout))
