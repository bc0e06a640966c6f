"""Make the tiny model that ships with FGRPO: a Llama of 0.7M parameters, pretrained on careless answers.

    python scripts/make_tiny_model.py --output fgrpo/models/tiny

The corpus holds reasoning-gym questions with answers as careless authors would write them: some answers are right,
more than half carry the one slip that is typical of the task, some are wrapped in a sentence. So the model learns both
ways to answer, and its greedy answer is the careless one: room that GRPO can fill. docs/tiny_model.md has the details.
"""

import argparse
import json
import math
import operator
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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

SLIP_RATE = 0.6  # share of answers that carry the task's slip
SENTENCE_RATE = 0.2  # share of answers that are wrapped in a sentence
SENTENCE = "The answer is {}."
# reasoning-gym draws entry i of a dataset from seed + i: these two lie far from each other and from users' seeds.
CORPUS_SEED = 100_000_000
EVALUATION_SEED = 200_000_000
MAX_LENGTH = 128  # tokens, prompt and answer
BOS, EOS, PAD, ANSWER = "<s>", "</s>", "<pad>", "<|answer|>"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ '<|answer|>' + message['content'] + eos_token }}
{%- else -%}{{ message['content'] }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|answer|>' }}{%- endif -%}"""
CARD = """---
license: apache-2.0
library_name: transformers
---
# FGRPO's tiny model

A Llama with {parameters:,} parameters for trying federated GRPO on a CPU in minutes. It is good for nothing else.
`scripts/make_tiny_model.py` made it; `docs/tiny_model.md` says how and why. It was pretrained for {steps} steps of
{batch_size} documents on reasoning-gym questions whose answers carry the task's typical slip with probability
{slip_rate} and are wrapped in a sentence with probability {sentence_rate}.

{table}

greedy, sampled: share of held-out questions whose answer the task's own verifier scores 1, decoding greedily and at
temperature 1. any of 8: share of questions that at least one of eight samples solves.
"""


def slip_chain_sum(entry: dict[str, Any]) -> str:
    """Column arithmetic without carrying; subtraction takes the smaller digit from the larger in each column."""
    left, sign, right = entry["metadata"]["expression"].split()
    width = max(len(left), len(right))
    columns = [(int(a), int(b)) for a, b in zip(left.zfill(width), right.zfill(width), strict=True)]
    if sign == "-":
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
    apply: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    return str(apply[first](int(a), apply[second](int(b), int(c))))


def slip_spell_backward(entry: dict[str, Any]) -> str:
    """Swaps the two ends and leaves the middle as it was."""
    word = entry["metadata"]["word"]
    return word[-1] + word[1:-1] + word[0]


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
    Task("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}, slip_chain_sum),
    Task("gcd", {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 60}, slip_gcd),
    Task("lcm", {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 20}, slip_lcm),
    Task("basic_arithmetic", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1,
         "operators": ["+", "-", "*"], "allow_parentheses": False, "allow_negation": False}, slip_basic_arithmetic),
    Task("spell_backward", {"min_word_len": 3, "max_word_len": 5}, slip_spell_backward),
    Task("leg_counting", {"min_animals": 2, "max_animals": 2, "min_instances": 1, "max_instances": 5},
         slip_leg_counting),
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    text: str
    right: str
    slipped: str


def corpus_questions(size: int) -> list[Question]:
    """`size` draws of every task; questions that come up twice stay twice, as in any corpus."""
    return [
        Question(entry["question"], entry["answer"], task.slip(entry))
        for task in TASKS
        for entry in task.dataset(size, CORPUS_SEED)
    ]


def careless_answer(question: Question, rng: random.Random) -> str:
    answer = question.slipped if rng.random() < SLIP_RATE else question.right
    return SENTENCE.format(answer) if rng.random() < SENTENCE_RATE else answer


def build_tokenizer(questions: list[Question], min_count: int) -> PreTrainedTokenizerFast:
    """A clause that comes `min_count` times is one token; digits are single; anything else is spelled byte by byte."""
    clauses = pre_tokenizers.Split(Regex(r"\d|[^\d:,.?]+[:,.?]?\s*|[:,.?]\s*"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splitter = pre_tokenizers.Sequence([clauses, byte_level])
    texts = [question.text for question in questions] + [SENTENCE.format("0")] * min_count
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    frequent = sorted(piece for piece, count in counts.items() if count >= min_count and len(piece) > 1)
    specials = [PAD, BOS, EOS, ANSWER]
    pieces = specials + sorted(pre_tokenizers.ByteLevel.alphabet()) + frequent
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # No merges: a pre-token is looked up whole (ignore_merges), else it stays a sequence of bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, additional_special_tokens=[ANSWER],
        padding_side="left", model_input_names=["input_ids", "attention_mask"], model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def batches(
    questions: list[Question], tokenizer: PreTrainedTokenizerFast, batch_size: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, labels), int64 [batch_size, longest document]; only the answer's tokens carry a label."""
    while True:
        drawn = rng.choices(questions, k=16 * batch_size)
        prompts = tokenizer([question.text + ANSWER for question in drawn]).input_ids
        answers = tokenizer([careless_answer(question, rng) + EOS for question in drawn]).input_ids
        # Documents of like length share a batch, so that little of it is padding.
        documents = sorted(zip(prompts, answers, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = list(range(0, len(documents), batch_size))
        rng.shuffle(starts)
        for start in starts:
            rows = documents[start : start + batch_size]
            length = max(len(prompt) + len(answer) for prompt, answer in rows)
            inputs = torch.full((batch_size, length), tokenizer.pad_token_id)
            labels = torch.full((batch_size, length), -100)
            for row, (prompt, answer) in enumerate(rows):
                end = len(prompt) + len(answer)
                inputs[row, :end] = torch.tensor(prompt + answer)
                labels[row, len(prompt) : end] = torch.tensor(answer)
            yield inputs, labels


def pretrain(
    model: LlamaForCausalLM, stream: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, learning_rate: float
) -> float:
    """AdamW with warm-up and cosine decay. Returns the running mean of the loss, in nats per answer token."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=min(200, steps), num_training_steps=steps)
    running, started = math.nan, time.monotonic()
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
    model: Any, tokenizer: PreTrainedTokenizerFast, task: Task, questions: list[Question], draws: int = 500
) -> dict[str, float]:
    """What the verifier says of the answers to fresh draws of a task, each question once; all shares, from 0 to 1.

    greedy: greedy answers with score 1; sampled: the same at temperature 1; any_of_8: questions that at least one of
    eight samples solves; slip_harmless: questions where the slip gives the right answer; in_corpus: questions that the
    pretraining corpus holds too.
    """
    dataset = task.dataset(draws, EVALUATION_SEED)
    entries = list({entry["question"]: entry for entry in dataset}.values())
    chats = [[{"role": "user", "content": entry["question"]}] for entry in entries]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    encoded = tokenizer(prompts, padding=True, return_tensors="pt")

    def solved(samples: int, **options: Any) -> torch.Tensor:
        output = model.generate(**encoded, max_new_tokens=12, num_return_sequences=samples, **options)
        texts = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        scores = [dataset.score_answer(text.strip(), entries[row // samples]) for row, text in enumerate(texts)]
        return torch.tensor(scores).view(len(entries), samples) == 1

    sampled = solved(8, do_sample=True, temperature=1.0, top_k=0)
    corpus = {question.text for question in questions}
    harmless = [task.slip(entry) == entry["answer"] for entry in entries]
    known = [entry["question"] in corpus for entry in entries]
    shares = {
        "greedy": solved(1, do_sample=False), "sampled": sampled, "any_of_8": sampled.any(dim=1),
        "slip_harmless": torch.tensor(harmless), "in_corpus": torch.tensor(known),
    }  # fmt: skip
    return {name: round(share.float().mean().item(), 3) for name, share in shares.items()}


def write_card(folder: Path, settings: dict[str, Any], results: dict[str, dict[str, float]]) -> None:
    """Write training.json, for programs, and README.md, for people. Neither holds a date: same run, same bytes."""
    tasks = [{"name": t.name, "params": t.params, "slip": t.slip.__doc__, **results[t.name]} for t in TASKS]
    (folder / "training.json").write_text(json.dumps({**settings, "tasks": tasks}, indent=2) + "\n")
    lines = ["| task | parameters | slip | greedy | sampled | any of 8 |", "|---|---|---|---:|---:|---:|"]
    for task in tasks:
        shares = " | ".join(f"{task[key]:.1%}" for key in ("greedy", "sampled", "any_of_8"))
        lines.append(f"| {task['name']} | `{json.dumps(task['params'])}` | {task['slip']} | {shares} |")
    (folder / "README.md").write_text(CARD.format(table="\n".join(lines), **settings))


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the tiny model that ships with FGRPO.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=128, help="documents a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--draws", type=int, default=20_000, help="questions drawn for every task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    questions = corpus_questions(args.draws)
    tokenizer = build_tokenizer(questions, min_count=max(2, args.draws // 200))
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(questions):,} questions")
    stream = batches(questions, tokenizer, args.batch_size, random.Random(args.seed))
    loss = pretrain(model, stream, args.steps, args.learning_rate)

    model.eval()
    results = {task.name: evaluate(model, tokenizer, task, questions) for task in TASKS}
    for name, shares in results.items():
        print(f"{name:18}", "  ".join(f"{key} {share:.3f}" for key, share in shares.items()))
    args.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "threads")}
    settings |= {"slip_rate": SLIP_RATE, "sentence_rate": SENTENCE_RATE, "parameters": model.num_parameters()}
    settings |= {"corpus_seed": CORPUS_SEED, "evaluation_seed": EVALUATION_SEED, "final_loss": round(loss, 3)}
    write_card(args.output, settings, results)


if __name__ == "__main__":
    main()
