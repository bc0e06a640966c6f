"""All clients in this process at once: their LoRA adapters stacked over one frozen model, for one accelerator."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from fgrpo.client.round import reply
from fgrpo.client.stacked_lora import stacked
from fgrpo.client.stacked_training import train_together
from fgrpo.engines.in_process import InProcess
from fgrpo.errors import FgrpoError
from fgrpo.records import Failure, Reply, ServerState
from fgrpo.stopwatch import Stopwatch


class Stacked(InProcess):
    """The engine whose clients share forward and backward passes; to rounding, it gives what `InProcess` gives."""

    def train(self, state: ServerState) -> tuple[list[Reply | Failure], dict[str, Tensor]]:
        members, config = self._members, self._config
        residuals = {member.name: self._residual(member, state) for member in members}
        watches = [Stopwatch(partial(self._observer.stage, member.name)) for member in members]
        replies: list[Reply | Failure] = []
        with stacked(self._policy.model, len(members)) as stack:
            stack.load(state.params_P)
            results = train_together(self._policy, stack, members, config, state.round + 1, watches)
            for place, (result, watch) in enumerate(zip(results, watches, strict=True)):
                if isinstance(result, Failure):
                    replies.append(result)
                    continue
                trained, residual_P = partial(stack.flatten, place), residuals[result.client]
                try:
                    replies.append(reply(result, trained, self.manifest, state.params_P, residual_P, config, watch))
                except FgrpoError as error:
                    replies.append(Failure(result.client, str(error)))
        return replies, {client: residual_P for client, residual_P in residuals.items() if residual_P is not None}
