"""Prompt and answer as an encoder reads them: what its own tokenizer makes of two texts."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

import runs
import tiny
from prefiere.data.schema import Message, PreferencePair
from prefiere.tokens.text_pairs import PairEncoder, unmarked
from prefiere.tokens.truncation import EncodeReport, Truncation


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return AutoTokenizer.from_pretrained(runs.encoder_folder(tmp_path_factory.mktemp("bert")))


PAIR = PreferencePair(prompt="What is a dog?", chosen="A dog is an animal.", rejected="bread", source="d:1")


def test_ids_are_the_tokenizer_s_own(tokenizer) -> None:
    encoder = PairEncoder(tokenizer)
    (group,) = encoder.encode([PAIR], EncodeReport())
    for completion, text in zip(group.completions, (PAIR.chosen, PAIR.rejected), strict=True):
        expected = tokenizer(PAIR.prompt, text)
        assert [*group.prompt, *completion] == expected["input_ids"]
        assert encoder.typed
        assert [0] * len(group.prompt) + [1] * len(completion) == expected["token_type_ids"]


def test_messages_become_text_without_markup() -> None:
    one = (Message("user", "What is a dog?"),)
    assert unmarked(one) == unmarked("What is a dog?") == "What is a dog?"
    talk = (*one, Message("assistant", "An animal."), Message("user", "And a house?"))
    assert unmarked(talk) == "Human: What is a dog?\n\nAssistant: An animal.\n\nHuman: And a house?"
    assert unmarked("") == ""


@pytest.mark.parametrize("longest", [8, 10, 14])
def test_what_is_too_long_loses_text_and_no_special_token(tokenizer, longest) -> None:
    report = EncodeReport()
    (group,) = PairEncoder(tokenizer, Truncation(longest)).encode([PAIR], report)
    whole = tokenizer(PAIR.prompt)["input_ids"][1:-1]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert group.prompt[0] == cls
    assert group.prompt[-1] == sep
    kept = group.prompt[1:-1].tolist()
    assert kept == whole[len(whole) - len(kept) :]
    for completion in group.completions:
        assert completion[-1] == sep
        assert len(group.prompt) + len(completion) <= longest
    assert report.counts["truncated_prompts"] + report.counts["truncated_completions"] > 0


def test_every_record_is_accounted_for(tokenizer) -> None:
    report = EncodeReport()
    same = PreferencePair(prompt="a", chosen="dog", rejected="dog", source="d:2")
    blank = PreferencePair(prompt="a", chosen=" ", rejected="dog", source="d:3")
    kept = list(PairEncoder(tokenizer).encode([PAIR, same, blank], report))
    assert [g.source for g in kept] == ["d:1"]
    assert (report.examples, report.groups, report.dropped) == (3, 1, 2)
    with pytest.raises(ValueError, match="d:3: an answer says nothing"):
        list(PairEncoder(tokenizer, on_bad="error").encode([blank], EncodeReport()))
    (scored,) = PairEncoder(tokenizer).encode_answers(["a"], [""], EncodeReport())
    assert scored.completions[0].tolist() == [tokenizer.sep_token_id]
    assert np.array_equal(scored.prompt, tokenizer("a")["input_ids"])


def test_token_types_are_as_the_tokenizer_has_them() -> None:
    encoder = PairEncoder(tiny.tokenizer("bpe"))  # one text after the other, and no types
    assert not encoder.typed
    (group,) = encoder.encode([PAIR], EncodeReport())
    assert [*group.prompt, *group.completions[0]] == tiny.tokenizer("bpe")(PAIR.prompt, PAIR.chosen)["input_ids"]
