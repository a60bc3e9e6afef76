"""LongRoPE: what a text's log-probs are does not depend on who shares its row."""

import numpy as np
import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from prefiere.models.load import load_policy
from prefiere.models.source import find_model
from prefiere.models.trunk import Trunk
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import pack

FIRST = 32
"""How long the texts were that the model was first trained on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parameters = {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": FIRST, "short_factor": [1.0] * 4, "long_factor": [3.0, 5.0, 7.0, 9.0],
    }  # fmt: skip
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=FIRST,
        rope_parameters=parameters, pad_token_id=0, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("longrope")
    Phi3ForCausalLM(config).save_pretrained(path)
    return path


def text(prompt: int, *answers: int) -> PromptGroup:
    rng = np.random.default_rng(prompt)
    draw = lambda n: rng.integers(3, 99, n).astype(np.int32)  # noqa: E731
    return PromptGroup(draw(prompt), tuple(draw(n) for n in answers), tuple(np.ones(n, bool) for n in answers))


TEXTS = [text(9, 7, 11), text(30, 20, 25), text(11, FIRST - 11, 3), text(12, FIRST - 11, 30)]
"""Short, long, exactly as long as the first length, one longer."""


@pytest.mark.parametrize("packed", [True, False])
def test_a_text_has_the_log_probs_that_it_has_alone(folder, packed):
    trunk, why = load_policy(find_model(folder), compute=torch.float32, adapter=None, max_length=100, packed=packed)
    assert trunk.packed is packed, why
    alone = torch.cat([trunk(pack([t])).logp_N for t in TEXTS])
    together = trunk(pack(TEXTS)).logp_N
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_alone_it_has_those_of_transformers(folder):
    """Each completion in a plain forward of its own; those of a prompt lie on one side of the first length here."""
    trunk, _ = load_policy(find_model(folder), compute=torch.float32, adapter=None, max_length=100)
    plain = Phi3ForCausalLM.from_pretrained(folder).eval()
    for group in TEXTS[:3]:
        expected = []
        for answer in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, answer]).astype(np.int64))[None]
            with torch.no_grad():
                logp = plain(ids).logits[0].log_softmax(-1)
            at = torch.arange(len(group.prompt) - 1, ids.shape[1] - 1)
            expected.append(logp[at, ids[0, at + 1]])
        torch.testing.assert_close(trunk(pack([group])).logp_N, torch.cat(expected), atol=2e-5, rtol=0)


def test_the_two_sets_of_frequencies_differ(folder):
    """Without its hooks the model answers as transformers does, by the longest text of a row."""
    plain = Trunk(Phi3ForCausalLM.from_pretrained(folder).eval(), packed=False)
    together = plain(pack(TEXTS)).logp_N
    alone = torch.cat([plain(pack([t])).logp_N for t in TEXTS])
    assert (together - alone).abs().max() > 0.01
