"""Answer a prompt of the user's own with the student, and with the experts that are in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engine.checkpoint.train_state import load_rng_tensors, rng_tensors
from engine.distill.student import student_generator
from engine.distill.teacher.teacher import Teacher
from engine.errors import GladiusError
from engine.events import STUDENT, Answer, Question, QuestionAnswered
from engine.generation import Generator, Heartbeat
from engine.run.job import JobContext, JobStopped
from engine.text.examples import Message

_TOP_P = 0.9
_MAX_PROMPT_SHARE = 0.75
"""Share of the context that a prompt may fill."""


class QuestionAnswerer:
    """Answers questions between two steps.

    The training does not change by it: the answer has a random generator of its own, the global
    ones and the model's mode are restored, and no gradient is computed.
    """

    def __init__(
        self,
        student: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        dtype: torch.dtype,
        teachers: Mapping[str, Teacher],
        ctx: JobContext,
    ) -> None:
        """dtype: of the student's matrix products; teachers: the experts in memory, by name."""
        self._student = student
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._teachers = teachers
        self._ctx = ctx

    def answer(self, question: Question) -> QuestionAnswered:
        """The answers of the student and of the experts in memory. An error becomes the note."""
        began = time.monotonic()
        random_state = rng_tensors()
        was_training = self._student.training
        self._student.eval()
        answers: list[Answer] = []
        note = ""
        try:
            student = student_generator(self._student, self._tokenizer, self._dtype)
            answers.append(answer_of(student, STUDENT, "student", question, self._heartbeat))
            for name, teacher in self._teachers.items():
                answers.append(answer_of(teacher, name, teacher.title, question, self._heartbeat))
            if not self._teachers:
                note = "no expert is in memory: this run trains on stored targets"
        except JobStopped:
            raise
        except GladiusError as error:
            note = str(error)
        except Exception as error:  # such as out of memory; the training goes on
            note = f"not answered: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}"
        finally:
            self._student.train(was_training)
            load_rng_tensors(random_state)
        return QuestionAnswered(
            id=question.id,
            prompt=question.prompt,
            answers=tuple(answers),
            note=note,
            seconds=time.monotonic() - began,
        )

    def _heartbeat(self, activity: str) -> None:
        self._ctx.heartbeat(activity)


def answer_of(
    generator: Generator, who: str, title: str, question: Question, heartbeat: Heartbeat
) -> Answer:
    """A model's answer; raises GladiusError for a prompt that its context has no room for."""
    messages = [Message(role="user", content=question.prompt)]
    length = len(generator.encode_prompt(messages))
    context = getattr(generator.model.config, "max_position_embeddings", None)
    if context is not None and length > _MAX_PROMPT_SHARE * context:
        raise GladiusError(
            f"the prompt has {length:,} tokens, and the context of {title} is {context:,}; "
            "ask a shorter question"
        )
    (answer,) = generator.generate(
        [messages],
        max_new_tokens=question.max_new_tokens,
        temperature=question.temperature,
        top_p=_TOP_P,
        seed=question.seed,
        batch_size=1,
        heartbeat=heartbeat,
    )
    return Answer(who=who, title=title, text=answer.text, complete=answer.complete)
