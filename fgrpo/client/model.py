"""Loading a causal language model with its tokenizer, and telling apart what is trained."""

from __future__ import annotations

import copy
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fgrpo.client.device_masks import mask_without_looking
from fgrpo.client.quantization import compute_as_in_training, quantized_loading
from fgrpo.config import PACKAGED_MODELS, Config, LoraConfig
from fgrpo.errors import ConfigError, how_to_install
from fgrpo.seeds import seeded


def resolve_device(name: str) -> torch.device:
    """Return the device that `name` means; `auto` is the accelerator if there is one, else the CPU."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None and accelerator.type in ("cuda", "xpu") else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from None


def model_source(config: Config) -> str:
    """Return the folder or hub id that the configuration's model is loaded from."""
    return str(files("fgrpo") / "models" / config.model) if config.model in PACKAGED_MODELS else config.model


def load_model(config: Config) -> tuple[nn.Module, Any]:
    """Load model and tokenizer from a hub id, a folder, a folder with a GGUF file, or the package.

    Returns:
        The model, in evaluation mode on its device with only the trained parameters requiring gradients and, unless
        `train.model_dropout` asks for it, without dropout of its own; and the tokenizer, padding on the left.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = model_source(config)
    if config.gguf_file and find_spec("gguf") is None:
        raise ConfigError(f"gguf_file: needs the package gguf: {how_to_install('gguf')}")
    extra = {"gguf_file": config.gguf_file} if config.gguf_file else {}
    dtype, device = getattr(torch, config.dtype), resolve_device(config.device)
    how = quantized_loading(config.quantization, dtype, device) if config.quantization else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **extra, **how)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        kind = "folder" if Path(source).is_dir() else "hub id or folder"
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model: {kind} '{config.model}' cannot be loaded: {reason}") from None
    if config.gguf_file:
        model = _plain_copy(model)
    if config.quantization:
        compute_as_in_training(model)
    if tokenizer.pad_token_id is None:  # any token will do: padding is always masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "left"
    model.to(device)
    mask_without_looking(model)
    if not config.train.model_dropout:
        switch_off_dropout(model)
    if config.lora is not None:
        model = add_adapters(model, config.lora, config.seed)
    return model.eval(), tokenizer


def _plain_copy(model: Any) -> Any:
    """Return a model that was read from GGUF as one that can be trained and saved: same weights, no quantiser."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


# resid_pdrop, attention_dropout, layerdrop, router_jitter_noise: rates by their names in modules and configurations.
_IS_NOISE = re.compile("drop|jitter")


def switch_off_dropout(model: Any) -> None:
    """Set every rate of dropout, and of a router's jitter, to 0, so that training computes what was sampled from.

    Rollouts are drawn without dropout; with it, the loss would take its noise for a change of the policy. Some models
    read their rates from the configuration as they go, so it changes too.
    """
    for holder in (*model.modules(), model.config, model.config.get_text_config()):
        is_dropout = "Dropout" in type(holder).__name__
        for name, rate in vars(holder).items():
            if isinstance(rate, float) and (_IS_NOISE.search(name) or (is_dropout and name == "p")):
                setattr(holder, name, 0.0)


def add_adapters(model: nn.Module, lora: LoraConfig, seed: int) -> nn.Module:
    """Wrap a model with peft's LoRA; the adapters' first values depend only on the seed.

    With `lora.train: b` the first matrices stay at them, on all clients and for the whole run.
    """
    import peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    with seeded(torch.device("cpu"), seed):
        try:
            adapted = peft.get_peft_model(model, config)
        except ValueError as error:
            raise ConfigError(f"lora: {str(error).splitlines()[0]}") from None
    if lora.train == "b":
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name or ".lora_embedding_A." in name:
                parameter.requires_grad_(False)
    return adapted


def is_adapted(model: nn.Module) -> bool:
    """True if the model carries peft adapters."""
    return hasattr(model, "disable_adapter")


def base_model(model: nn.Module) -> Any:
    """Return the transformers model, without peft's wrapper where there is one."""
    return model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
