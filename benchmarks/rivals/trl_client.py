"""The clients of a configuration on TRL's GRPOTrainer: our prompts, rewards, model and settings, TRL's training.

TRL at its best on a CPU: float32, a batch in one forward pass, no logging, saving or checkpointing, AdamW fused; model
and trainer are made once and serve every client of the process, round after round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from fgrpo.client.model import load_model
from fgrpo.client.owner import Client, Question
from fgrpo.client.owners import make_clients
from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.records import Completion
from fgrpo.seeds import derive_seed
from rivals.record import Work

Parameters = Mapping[str, Tensor]


class TrlClients:
    """All clients of a configuration, and one model that trains for whichever has its turn."""

    def __init__(self, config: Config, threads: int) -> None:
        _check_supported(config)
        torch.set_num_threads(threads)
        datasets.disable_progress_bars()
        transformers.utils.logging.set_verbosity_error()
        self.clients = make_clients(config)
        self._config = config
        self._model, self._tokenizer = load_model(config)
        self._turn = _Turn(self.clients[0], [])
        self._trainer = _TimedTrainer(
            model=self._model,
            reward_funcs=self._rewards,
            args=_settings(config),
            train_dataset=Dataset.from_list(self._rows(self.clients[0].draw(0, 1))),  # each turn brings its own
            processing_class=self._tokenizer,
        )
        self._trainer.remove_callback(PrinterCallback)
        gc.freeze()  # the trainer asks for a collection at each start; it need not walk through what stays

    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name, float32; they go on changing with the model."""
        return {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}

    def train(self, client: int, parameters: Parameters, round_number: int) -> Work:
        """Train from `parameters` for a round on a client's own prompts; `self.parameters()` is then the result."""
        for name, mine in self.parameters().items():
            mine.copy_(parameters[name])
        train, per_step = self._config.train, self._config.rollout.prompts_per_step
        member, start = self.clients[client], (round_number - 1) * train.local_steps * per_step
        self._turn = _Turn(member, member.draw(start, train.local_steps * per_step))
        torch.manual_seed(derive_seed(self._config.seed, member.name, "trl", round_number))
        trainer = self._trainer
        trainer.train_dataset = Dataset.from_list(self._rows(self._turn.questions))
        trainer.optimizer = None  # afresh in every round, as in our loop
        trainer.rollout_s = trainer.reward_s = 0.0
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        return self._turn.work(trainer.rollout_s, trainer.reward_s, seconds - trainer.rollout_s - trainer.reward_s)

    def _rows(self, questions: list[Question]) -> list[dict[str, Any]]:
        return [{"prompt": self._prompt(q.example.prompt), "question": i} for i, q in enumerate(questions)]

    def _prompt(self, text: str) -> Any:
        system = self._config.rollout.system_prompt
        if self._tokenizer.chat_template is None:
            return text if system is None else f"{system}\n\n{text}"
        user = {"role": "user", "content": text}
        return [user] if system is None else [{"role": "system", "content": system}, user]

    def _rewards(
        self, completions: list[Any], completion_ids: list[list[int]], question: list[int], **_: Any
    ) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        answers = [Completion(text, ids) for text, ids in zip(texts, completion_ids, strict=True)]
        rewards = self._turn.rewards(question, answers)
        self._turn.count(rewards, completion_ids, self._config.rollout.group_size)
        return rewards


class _Turn:
    """A client's turn: its questions, and what was done."""

    def __init__(self, client: Client, questions: list[Question]) -> None:
        self.questions = questions
        self._client = client
        self._sequences = self._tokens = self._groups = self._informative = 0

    def rewards(self, numbers: Sequence[int], answers: Sequence[Completion]) -> list[float]:
        scores = self._client.scores([self.questions[number] for number in numbers], answers)
        return [self._client.reward_scale * value for value in scores.values]

    def count(self, rewards: list[float], completion_ids: list[list[int]], group_size: int) -> None:
        groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
        self._sequences += len(rewards)
        self._tokens += sum(map(len, completion_ids))
        self._groups += len(groups)
        self._informative += sum(len(set(group)) > 1 for group in groups)

    def work(self, rollout_s: float, reward_s: float, train_s: float) -> Work:
        counted = self._sequences, self._tokens, self._groups, self._informative
        return Work(*counted, rollout_s, reward_s, train_s)


class _TimedTrainer(GRPOTrainer):
    """TRL's trainer, which also adds up the seconds of its stages."""

    rollout_s = reward_s = 0.0

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = super()._generate_single_turn(*args, **options)
        self.rollout_s += time.perf_counter() - began
        return result

    def _calculate_rewards(self, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = super()._calculate_rewards(*args, **options)
        self.reward_s += time.perf_counter() - began
        return result


def _settings(config: Config) -> GRPOConfig:
    train, rollout = config.train, config.rollout
    return GRPOConfig(
        per_device_train_batch_size=rollout.prompts_per_step * rollout.group_size // train.minibatches,
        steps_per_generation=train.minibatches,
        gradient_accumulation_steps=1,
        num_generations=rollout.group_size,
        num_iterations=train.updates_per_rollout,
        max_steps=train.local_steps * train.updates_per_rollout * train.minibatches,
        max_completion_length=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_k=0,
        top_p=1.0,
        shuffle_dataset=False,
        learning_rate=train.lr,
        lr_scheduler_type="constant",
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        epsilon=train.clip_low,
        epsilon_high=train.clip_high,
        loss_type=train.reduction,
        importance_sampling_level=train.level,
        scale_rewards=train.advantage_scale,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )


def _check_supported(config: Config) -> None:
    """Refuse settings under which TRL would train something else."""
    train = config.train
    sequences = config.rollout.prompts_per_step * config.rollout.group_size
    differs = {
        "train.baseline leave_one_out": train.baseline != "mean",
        "train.beta above 0": train.beta > 0,
        "train.entropy_coef above 0": train.entropy_coef > 0,
        "train.minibatches that do not divide the batch": sequences % train.minibatches != 0,
    }
    for setting, there in differs.items():
        if there:
            raise ConfigError(f"{setting}: the comparison with TRL does not cover it")
