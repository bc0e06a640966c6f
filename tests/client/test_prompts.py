"""What the model reads of a prompt: the chat template's rendering, or the text as it is."""

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from fgrpo.client.prompts import render
from fgrpo.errors import TaskError
from fgrpo.records import Chat

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
PLAIN += "{% if add_generation_prompt %}<assistant>{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN


def say(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def tokenizer(policy):
    def with_template(template):
        tokenizer = AutoTokenizer.from_pretrained(policy.tokenizer.name_or_path)
        tokenizer.chat_template = template
        return tokenizer

    return with_template


USER, SYSTEM, ANSWER = say("user", "Hi"), say("system", "Be kind."), say("assistant", "Hel")


@pytest.mark.parametrize(
    ("template", "prompt", "system_prompt", "text"),
    [
        (PLAIN, "Hi", None, "<user>Hi</s><assistant>"),
        (PLAIN, "Hi", "Be kind.", "<system>Be kind.</s><user>Hi</s><assistant>"),
        (PLAIN, Chat.of([USER]), None, "<user>Hi</s><assistant>"),
        (PLAIN, Chat.of([SYSTEM, USER]), "Be rude.", "<system>Be kind.</s><user>Hi</s><assistant>"),
        (PLAIN, Chat.of([USER, ANSWER]), None, "<user>Hi</s><assistant>Hel"),
        (PLAIN, Chat.of([USER, ANSWER, USER]), None, "<user>Hi</s><assistant>Hel</s><user>Hi</s><assistant>"),
        (NO_SYSTEM, Chat.of([SYSTEM, USER, ANSWER]), None, "<user>Be kind.\n\nHi</s><assistant>Hel"),
        (NO_SYSTEM, "Hi", "Be kind.", "<user>Be kind.\n\nHi</s><assistant>"),
        (None, "Hi", "Be kind.", "Be kind.\n\nHi"),
        (None, Chat.of([SYSTEM, USER]), None, "Be kind.\n\nHi"),
    ],
)
def test_render(tokenizer, template, prompt, system_prompt, text):
    assert render(tokenizer(template), prompt, system_prompt) == text


def test_a_chat_that_cannot_be_rendered_is_refused(tokenizer):
    with pytest.raises(TaskError, match="a chat of user, assistant needs a chat template"):
        render(SimpleNamespace(chat_template=None), Chat.of([USER, ANSWER]), None)
    with pytest.raises(TaskError, match="refuses a chat of user: only robots"):
        render(tokenizer("{{ raise_exception('only robots') }}"), Chat.of([USER]), None)
