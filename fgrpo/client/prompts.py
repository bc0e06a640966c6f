"""From a prompt to the text that the model continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from fgrpo.errors import TaskError
from fgrpo.records import Chat

Messages = Sequence[dict[str, Any]]


def render(tokenizer: Any, prompt: str | Chat, system_prompt: str | None) -> str:
    """Return the chat template's rendering of a prompt, or its bare text where the tokenizer has no template.

    Args:
        system_prompt: put before the prompt; a chat that brings a system message of its own keeps that one.

    Raises:
        TaskError: a chat that the template refuses, or that has answers in it and no template to set them apart.
    """
    messages = prompt.messages if isinstance(prompt, Chat) else [{"role": "user", "content": prompt}]
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
    if tokenizer.chat_template is None:
        return _bare(messages)
    try:
        return _templated(tokenizer, messages)
    except (TemplateError, ValueError) as error:
        if _roles(messages[:2]) != ["system", "user"]:
            raise TaskError(
                f"the model's chat template refuses a chat of {', '.join(_roles(messages))}: {error}"
            ) from None
    # The template has no place for a system message.
    return render(tokenizer, Chat.of([{**messages[1], "content": _bare(messages[:2])}, *messages[2:]]), None)


def _templated(tokenizer: Any, messages: Messages) -> str:
    """Return the text up to where the model's answer begins, or goes on."""
    begun = messages[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
    )


def _bare(messages: Messages) -> str:
    if _roles(messages) not in (["user"], ["system", "user"]):
        raise TaskError(
            f"a chat of {', '.join(_roles(messages))} needs a chat template, and the model's tokenizer has none; "
            "without one a prompt is text, or one user message with or without a system message"
        )
    return "\n\n".join(message["content"] for message in messages)


def _roles(messages: Messages) -> list[str]:
    return [message["role"] for message in messages]
