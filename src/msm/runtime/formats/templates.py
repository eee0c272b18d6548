"""Chat templates: from the messages of a conversation to the prompt that a model was trained to continue.

A template is a function of the messages, or text in the Jinja language as tokenizers of pretrained models carry it,
with the variables `messages` and `add_generation_prompt`. Text is run in Jinja's sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msm.kit.errors import Internal, InvalidInput, LoadFailed
from msm.runtime.formats.base import Message, first_line, missing_library


class ChatTemplate:
    """A template, compiled once. Raises LoadFailed for one that is not valid, Unsupported without the library."""

    def __init__(self, template: str | Callable[[list[Message]], str]) -> None:
        if callable(template):
            self._render: Callable[[list[Message]], str] = template
        elif isinstance(template, str):
            self._render = _compiled(template)
        else:
            raise LoadFailed(
                f"chat_template must be text or a function, got {type(template).__name__}", reason="not_a_model"
            )

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt. Raises InvalidInput when the template refuses the messages."""
        prompt = self._render(list(messages))
        if not isinstance(prompt, str):
            raise Internal(
                f"chat_template of the model gave {type(prompt).__name__}, it must be text",
                reason="model_output_invalid",
            )
        return prompt


def _compiled(text: str) -> Callable[[list[Message]], str]:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise missing_library("python with a chat_template", "huggingface", error) from error
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    try:
        template = environment.from_string(text)
    except TemplateError as error:
        raise LoadFailed(f"chat_template is not valid: {first_line(error)}", reason="not_a_model") from error

    def render(messages: list[Message]) -> str:
        return template.render(messages=messages, add_generation_prompt=True)

    return render


def _refuse(message: Any) -> None:
    """What templates call when they cannot express a conversation."""
    raise InvalidInput(f"the model's chat template refuses the messages: {str(message)[:200]}", reason="bad_messages")
