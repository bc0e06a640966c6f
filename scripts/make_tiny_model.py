"""Make the tiny model that ships with FGRPO: a Llama of about 0.8M parameters, pretrained on sloppy answers.

    python scripts/make_tiny_model.py --output fgrpo/models/tiny

The corpus holds reasoning-gym questions with answers as careless authors would write them: some answers are right,
more than half carry the one slip that is typical of the task, some are wrapped in a sentence. So the model learns both
ways to answer, and its greedy answer is the careless one: room that GRPO with a verifier can fill. See docs/tiny_model.md.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reasoning_gym
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SLIP_RATE = 0.6  # share of answers that carry the task's slip
SENTENCE_RATE = 0.2  # share of answers that are wrapped in a sentence
SENTENCE = "The answer is {}."
CORPUS_SEED = 100_000_000  # reasoning-gym draws entry i of a dataset from seed + i: stay far from the seeds that users take
EVALUATION_SEED = 200_000_000
BOS, EOS, PAD, ANSWER = "<s>", "</s>", "<pad>", "<|answer|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|answer|>' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|answer|>' }}{% endif %}"
)


def slip_chain_sum(entry: dict[str, Any]) -> str:
    """Column arithmetic without carrying; subtraction takes the smaller digit from the larger in each column."""
    left, operator, right = entry["metadata"]["expression"].split()
    width = max(len(left), len(right))
    columns = [(int(a), int(b)) for a, b in zip(left.zfill(width), right.zfill(width), strict=True)]
    if operator == "-":
        return str(int("".join(str(abs(a - b)) for a, b in columns)))
    (first_a, first_b), *rest = columns
    return str(first_a + first_b) + "".join(str((a + b) % 10) for a, b in rest)


def slip_gcd(entry: dict[str, Any]) -> str:
    """Tries no common factor but 2."""
    return "2" if all(number % 2 == 0 for number in entry["metadata"]["numbers"]) else "1"


def slip_lcm(entry: dict[str, Any]) -> str:
    """Any common multiple will do: the product."""
    return str(math.prod(entry["metadata"]["numbers"]))


def slip_basic_arithmetic(entry: dict[str, Any]) -> str:
    """Works from right to left, whatever the operators."""
    a, first, b, second, c = entry["metadata"]["expression"].split()
    apply: dict[str, Callable[[int, int], int]] = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
    }
    return str(apply[first](int(a), apply[second](int(b), int(c))))


def slip_spell_backward(entry: dict[str, Any]) -> str:
    """Swaps the two ends and leaves the middle as it was."""
    word = entry["metadata"]["word"]
    return word[-1] + word[1:-1] + word[0]


def slip_calendar_arithmetic(entry: dict[str, Any]) -> str:
    """Counts forward even where the question says backward."""
    import datetime

    start = datetime.date.fromisoformat(entry["metadata"]["start_date"])
    return (start + datetime.timedelta(days=abs(entry["metadata"]["offset_days"]))).strftime("%A")


def slip_leg_counting(entry: dict[str, Any]) -> str:
    """Gives every animal four legs."""
    return str(4 * sum(entry["metadata"]["animals"].values()))


@dataclass(frozen=True)
class Task:
    """One reasoning-gym dataset and the slip that careless authors make on it."""

    name: str
    params: dict[str, Any]
    slip: Callable[[dict[str, Any]], str]

    def dataset(self, size: int, seed: int) -> Any:
        return reasoning_gym.create_dataset(self.name, size=size, seed=seed, **self.params)


TASKS = (
    Task("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, slip_chain_sum),
    Task("gcd", {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 60}, slip_gcd),
    Task("lcm", {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 20}, slip_lcm),
    Task(
        "basic_arithmetic",
        {
            "min_terms": 3,
            "max_terms": 3,
            "min_digits": 1,
            "max_digits": 1,
            "operators": ["+", "-", "*"],
            "allow_parentheses": False,
            "allow_negation": False,
        },
        slip_basic_arithmetic,
    ),
    Task("spell_backward", {"min_word_len": 3, "max_word_len": 5}, slip_spell_backward),
    Task("calendar_arithmetic", {"tasks": ["weekday_offset"], "offset_upper_bound": 20}, slip_calendar_arithmetic),
    Task(
        "leg_counting",
        {"min_animals": 2, "max_animals": 2, "min_instances": 1, "max_instances": 5},
        slip_leg_counting,
    ),
)


@dataclass(frozen=True)
class Question:
    task: str
    text: str
    right: str
    slipped: str


def corpus_questions(size: int) -> list[Question]:
    """`size` draws of every task; questions that come up twice stay twice, as in any corpus."""
    return [
        Question(task.name, entry["question"], entry["answer"], task.slip(entry))
        for task in TASKS
        for entry in task.dataset(size, CORPUS_SEED)
    ]


def careless_answer(question: Question, rng: random.Random) -> str:
    answer = question.slipped if rng.random() < SLIP_RATE else question.right
    return SENTENCE.format(answer) if rng.random() < SENTENCE_RATE else answer


def build_tokenizer(questions: list[Question], min_count: int = 100) -> PreTrainedTokenizerFast:
    """A clause that the corpus repeats is one token; digits are single; anything else is spelled byte by byte."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\d:,.?]+[:,.?]?\s*|[:,.?]\s*"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    texts = [question.text for question in questions] + [SENTENCE.format("0")] * min_count
    texts += [question.right for question in questions if question.task == "calendar_arithmetic"]
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    clauses = sorted(piece for piece, count in counts.items() if count >= min_count and len(piece) > 1)
    specials = [PAD, BOS, EOS, ANSWER]
    pieces = specials + sorted(pre_tokenizers.ByteLevel.alphabet()) + clauses
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[ANSWER],
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=8 * math.ceil(len(tokenizer) / 8),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def batches(
    questions: list[Question], tokenizer: PreTrainedTokenizerFast, batch_size: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, labels) of shape [batch, longest document]; only the answer carries a label."""
    prompts = dict.fromkeys(question.text for question in questions)
    prompts = dict(zip(prompts, tokenizer([text + ANSWER for text in prompts])["input_ids"], strict=True))
    while True:
        drawn = rng.choices(questions, k=batch_size * 16)
        answers = tokenizer([careless_answer(question, rng) + EOS for question in drawn])["input_ids"]
        documents = [(prompts[question.text], answer) for question, answer in zip(drawn, answers, strict=True)]
        documents.sort(key=lambda document: len(document[0]) + len(document[1]))
        starts = list(range(0, len(documents), batch_size))
        rng.shuffle(starts)
        for start in starts:
            rows = documents[start : start + batch_size]
            length = max(len(prompt) + len(answer) for prompt, answer in rows)
            inputs = torch.full((len(rows), length), tokenizer.pad_token_id)
            labels = torch.full((len(rows), length), -100)
            for row, (prompt, answer) in enumerate(rows):
                inputs[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            yield inputs, labels


def pretrain(
    model: LlamaForCausalLM, stream: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, learning_rate: float
) -> float:
    """AdamW with linear warm-up and cosine decay; returns the running mean of the last losses, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    warmup = min(200, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))),
    )
    running, started = 0.0, time.monotonic()
    for step, (inputs, labels) in zip(range(1, steps + 1), stream, strict=False):
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 250 == 0:
            print(f"step {step}/{steps}  loss {running:.3f}  {time.monotonic() - started:.0f} s", flush=True)
    return running


@torch.inference_mode()
def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, size: int, sample: bool = False
) -> float:
    """Share of answers that the verifier scores 1, greedy or sampled at temperature 1."""
    dataset = task.dataset(size, EVALUATION_SEED)
    entries = list(dataset)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": entry["question"]}], add_generation_prompt=True, tokenize=False
        )
        for entry in entries
    ]
    encoded = tokenizer(prompts, padding=True, return_tensors="pt")
    output = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        do_sample=sample,
        max_new_tokens=12,
    )
    texts = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = [dataset.score_answer(text.strip(), entry) for text, entry in zip(texts, entries, strict=True)]
    return sum(score == 1 for score in scores) / len(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the tiny model that ships with FGRPO.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=256, help="documents a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--corpus", type=int, default=20_000, help="questions drawn for every task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.monotonic()
    questions = corpus_questions(args.corpus)
    for task in TASKS:
        mine = [q for q in questions if q.task == task.name]
        print(task.name, "slip harmless", sum(q.right == q.slipped for q in mine) / len(mine), "unique", len({q.text for q in mine}))
    tokenizer = build_tokenizer(questions)
    model = build_model(tokenizer, args.hidden, args.layers)
    print(len(tokenizer), "tokens", sum(p.numel() for p in model.parameters()), "parameters")
    for task in TASKS:
        print(tokenizer.tokenize(task.dataset(1, 1)[0]["question"]))
    stream = batches(questions, tokenizer, args.batch_size, random.Random(args.seed))
    pretrain(model, stream, args.steps, args.learning_rate)
    model.eval()
    args.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    for task in TASKS:
        print(task.name, evaluate(model, tokenizer, task, 300), evaluate(model, tokenizer, task, 300, sample=True))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
