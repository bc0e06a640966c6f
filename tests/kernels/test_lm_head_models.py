"""The head's options in the order in which models of transformers apply them, and TRL's fused head after them."""

import pytest
import torch
from loss_cases import V, make_case

from fgrpo_kernels import linear_token_logprobs

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = [
    pytest.param("Gemma2", {"final_logit_softcapping": 0.5}, {"logit_softcap": 0.5}, id="gemma-2"),
    pytest.param("Cohere", {"logit_scale": 0.0625}, {"logit_scale": 0.0625}, id="cohere"),
    pytest.param("Granite", {"logits_scaling": 8.0}, {"logit_scale": 1 / 8}, id="granite"),
    pytest.param("HyperCLOVAX", {"logits_scaling": 8.0}, {"logit_scale": 8.0}, id="hyperclova-x"),
]


@pytest.mark.parametrize(("family", "config", "head"), MODELS)
def test_as_transformers_models_do_it(family, config, head):
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"this transformers has no {family}")
    torch.manual_seed(0)
    options = getattr(transformers, f"{family}Config")(**SIZES | config)
    model = getattr(transformers, f"{family}ForCausalLM")(options).eval()
    tokens = torch.randint(V, (2, 7))
    with torch.no_grad():
        logits = model(tokens).logits
        hidden = model.get_decoder()(tokens).last_hidden_state * 1.0
        plain = torch.nn.functional.linear(hidden, model.get_output_embeddings().weight)
        logp = linear_token_logprobs(hidden, model.get_output_embeddings().weight, tokens, **head).logp
    assert (plain - logits).abs().max() > 1e-3 * logits.abs().max(), "the option has no effect in this case"
    expected = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-6)


def test_all_at_once_as_trl_does_it():
    kernel = pytest.importorskip("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    case = make_case(torch.float32)
    temperature, scale, softcap = 0.7, 1.6, 3.0
    slopes = torch.randn(2, *case.targets_BT.shape, generator=torch.Generator().manual_seed(1))

    def gradients(ours):
        hidden, weight, bias = case.leaves()
        if ours:
            logp, entropy = linear_token_logprobs(
                hidden, weight, case.targets_BT, bias=bias, temperature=temperature, logit_scale=scale,
                logit_softcap=softcap,
            )  # fmt: skip
        else:
            outputs = kernel.apply(
                hidden.flatten(0, 1), weight, bias, case.targets_BT.flatten(), temperature, 16, softcap, scale,
                ("entropy",),
            )  # fmt: skip
            logp, entropy = (x.view(case.targets_BT.shape) for x in outputs[:2])
        ((slopes[0] * logp).sum() + (slopes[1] * entropy).sum()).backward()
        return logp.detach(), entropy.detach(), hidden.grad, weight.grad, bias.grad

    for got, expected in zip(gradients(ours=True), gradients(ours=False), strict=True):
        assert (got - expected).abs().max() <= 5e-6 * expected.abs().max()
