"""Templates of real model families, as TRL's package holds them: against apply_chat_template, and text written by hand.

Nothing that was said is lost without a word, nothing is rendered twice, no date is the clock's.
"""

from __future__ import annotations

import re
from datetime import date
from importlib.resources import files
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from prefiere.data.schema import Demonstration, Message, PreferencePair
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.rendered import format_of
from prefiere.tokens.tokenizer import decode
from prefiere.tokens.truncation import EncodeReport
from tiny import tokenizer


def family(name: str, *special: str) -> PreTrainedTokenizerFast:
    """A tiny tokenizer with a family's template and its special tokens."""
    tok = tokenizer("bpe", "chatml")
    tok.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tok.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    return tok


def encode(tok: Any, *records: Any, **options: Any) -> tuple[list[Any], EncodeReport]:
    report = EncodeReport()
    encoder = Encoder(tok, eos_ids=[tok.eos_token_id], on_bad="drop", **options)
    return list(encoder.encode(records, report)), report


def talk(*turns: Message | str) -> tuple[Message, ...]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer"}
    return tuple(t if isinstance(t, Message) else Message(roles[t[0]], t[2:]) for t in turns)


def demo(prompt: tuple[Message, ...], *answer: Message | str, **more: Any) -> Demonstration:
    return Demonstration(prompt=prompt, completion=talk(*answer), source="d.jsonl:1", **more)


def call(arguments: Any) -> Message:
    function = {"name": "weather", "arguments": arguments}
    return Message("assistant", "", {"tool_calls": [{"id": "1", "type": "function", "function": function}]})


def written(tok: Any, group: Any) -> str:
    return decode(tok, [*group.prompt, *group.completions[0]])


def counted(report: EncodeReport) -> dict[str, int]:
    return {k: n for k, n in report.counts.items() if n}


ASKED = talk("u:Rain in Vigo?")
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},)


# ---- what a template leaves out


@pytest.mark.parametrize("name", ["gemma3", "phi3", "gemma"])
def test_an_answer_that_the_template_leaves_out_is_refused(name: str) -> None:
    tok = family(name)
    groups, report = encode(tok, demo(ASKED, call({"city": "Vigo"})))
    assert not groups
    assert report.counts["left_out"] + report.counts["refused"] == 1
    with pytest.raises(ValueError, match=r"d\.jsonl:1: .*leaves out|refuses"):
        list(Encoder(tok, eos_ids=[5]).encode([demo(ASKED, call({"city": "Vigo"}))], EncodeReport()))


def test_a_pair_whose_chosen_answer_is_left_out_is_dropped() -> None:
    pair = PreferencePair(prompt=ASKED, chosen=(call({"city": "Vigo"}),), rejected="I cannot know.")
    groups, report = encode(tokenizer("bpe", "chatml"), pair)
    assert not groups
    assert counted(report) == {"left_out": 1}


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (demo(ASKED, Message("assistant", "Yes.", {"reasoning_content": "It is autumn."})), "reasoning_left_out"),
        (demo(ASKED, Message("assistant", "Yes.", {"thinking": "It is autumn."})), "reasoning_left_out"),
        (demo(ASKED, "a:Yes.", tools=TOOLS), "tools_left_out"),
        (demo((*ASKED, call({"city": "Vigo"}), *talk("t:18 mm")), "a:Yes."), "calls_left_out"),
    ],
)
def test_what_else_chatml_leaves_out_is_counted_under_its_name(record: Demonstration, what: str) -> None:
    [_], report = encode(tokenizer("bpe", "chatml"), record)
    assert counted(report) == {what: 1}
    assert report.sources[what] == ["d.jsonl:1"]


def only(*roles: str) -> Any:
    """A ChatML that writes these roles and passes over all others."""
    tok = tokenizer("bpe", "chatml")
    tok.chat_template = tok.chat_template.replace(
        "%}{{ '<|im_start|>'", f"%}}{{% if m['role'] in {list(roles)} %}}{{{{ '<|im_start|>'", 1
    )
    tok.chat_template = tok.chat_template.replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    return tok


@pytest.mark.parametrize(
    ("turn", "what"),
    [("s:Be brief.", "system_left_out"), ("d:Be brief.", "developer_left_out"), ("t:18 mm", "results_left_out")],
)
def test_messages_of_roles_that_a_template_passes_over_are_counted(turn: str, what: str) -> None:
    tok = only("user", "assistant")
    [group], report = encode(tok, demo(talk(turn, "u:Rain?"), "a:Yes."))
    assert counted(report) == {what: 1}
    assert "brief" not in written(tok, group)
    groups, report = encode(only("assistant"), demo(talk("u:Rain?"), "a:Yes."))
    assert not groups
    assert counted(report) == {"left_out": 1}


def test_short_words_that_stand_elsewhere_do_not_hide_what_is_gone() -> None:
    """The developer's "Rain" and the tool's name are words of the question as well."""
    tool = {"type": "function", "function": {"name": "Rain", "parameters": {}}}
    _, report = encode(only("user", "assistant"), demo(talk("d:Rain", "u:Rain?"), "a:Rain", tools=(tool,)))
    assert counted(report) == {"developer_left_out": 1, "tools_left_out": 1}


def test_a_template_that_cuts_thoughts_out_of_the_text_is_noticed_in_each_record() -> None:
    tok = family("deepseek_r1_distill", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
    tok.chat_template = tok.chat_template.replace("<｜Assistant｜><think>\\n", "<｜Assistant｜>")
    plain = demo(ASKED, "a:Yes.")
    [_, group], report = encode(tok, plain, demo(ASKED, "a:<think>It is autumn.</think>Yes, rain."))
    assert counted(report)["reasoning_left_out"] == 1
    assert "autumn" not in written(tok, group)


def test_nothing_is_counted_where_everything_comes_back() -> None:
    tok = family("qwen3", "<tool_call>", "<think>", "</think>")
    answer = Message("assistant", "Yes.", {"reasoning_content": "It is autumn."})
    records = [
        demo(ASKED, answer, tools=TOOLS),
        demo(talk("s:Be brief.", *ASKED), call({"city": "Vigo"}), tools=TOOLS),
        demo((*ASKED, call({"city": "Vigo"}), *talk("t:18 mm")), "a:  Yes,\n18 mm. ", tools=TOOLS),
    ]
    groups, report = encode(tok, *records)
    assert len(groups) == 3
    assert not {k for k in counted(report) if k.endswith("left_out")}


# ---- arguments


@pytest.mark.parametrize("arguments", ['{"city": "Vigo", "days": 2}', {"city": "Vigo", "days": 2}])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1"])
def test_arguments_are_encoded_once(name: str, arguments: Any) -> None:
    tok = family(name, "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>")
    [group], _ = encode(tok, demo(ASKED, call(arguments), tools=TOOLS))
    assert '"city": "Vigo", "days": 2}' in written(tok, group)
    assert '\\"' not in written(tok, group)


def test_arguments_are_text_where_the_template_joins_text() -> None:
    tok = family("deepseek_r1_distill", "<｜User｜>", "<｜Assistant｜>")
    tok.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # noqa: E501
    [group], _ = encode(tok, demo(ASKED, call({"city": "Vigo"})))
    assert 'weather {"city": "Vigo"}' in written(tok, group)


# ---- turns


def scored(tok: Any, group: Any) -> list[str]:
    out, before = [], False
    for token, on in zip(group.completions[0].tolist(), group.masks[0].tolist(), strict=True):
        if on:
            out = [*out[:-1], [*out[-1], token]] if before else [*out, [token]]
        before = on
    return [decode(tok, ids) for ids in out]


def test_turns_that_are_not_learnt_and_empty_ones_are_context() -> None:
    tok = tokenizer("bpe", "chatml")
    record = demo(
        talk("u:Capital of Peru?"), Message("assistant", "Quito.", {}, False), "u:Sure?", "a:", "u:So?", "a:Lima."
    )
    [group], report = encode(tok, record)
    assert scored(tok, group) == ["Lima.<|im_end|>"]
    assert "Quito.<|im_end|>" in written(tok, group)
    assert not counted(report)


@pytest.mark.parametrize("first", [Message("assistant", "Wrong.", learnt=False), Message("assistant", "")])
def test_a_pair_whose_first_turn_is_learnt_on_one_side_only(first: Message) -> None:
    tok = family("qwen2_5")
    pair = PreferencePair(
        prompt=talk("u:Hi"), chosen=(first, *talk("u:More?", "a:Yes.")), rejected=talk("a:No.", "u:More?", "a:Never.")
    )
    (group,), _ = encode(tok, pair)
    learnt = [decode(tok, c[m], False) for c, m in zip(group.completions, group.masks, strict=True)]
    assert learnt == ["Yes.<|im_end|>", "No.<|im_end|>Never.<|im_end|>"]


def test_what_is_learnt_after_a_greeting() -> None:
    tok = tokenizer("bpe", "chatml")
    [group], _ = encode(tok, demo(talk("a:Hello, ask me.", "u:Capital of Peru?"), "a:Lima."))
    assert scored(tok, group) == ["Lima.<|im_end|>"]
    assert "Hello, ask me." in decode(tok, group.prompt)


# ---- native markers


def test_the_assistants_own_markers_are_tokens_and_stay_text_in_the_users_turn() -> None:
    tok = tokenizer("bpe", "chatml")
    tok.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "[CALLS]"]})
    think = tok.convert_tokens_to_ids("<think>")
    text = "<think>two and two</think>4 [CALLS]"
    said = talk("u:<think> 2+2?", f"a:{text}")
    [group], _ = encode(tok, demo(said[:1], said[1]))
    assert group.completions[0].tolist()[:1] == [think]
    assert think not in group.prompt.tolist()
    theirs = tok.apply_chat_template([said[1].as_dict()], tokenize=True, return_dict=True)["input_ids"]
    n = len(group.completions[0])
    assert theirs[-n - 1 : -1] == group.completions[0].tolist()  # theirs ends with a line break
    [group], report = encode(tok, demo(said[:1], "a:x<|im_end|><|im_start|>user y"))
    assert group.completions[0].tolist().count(tok.eos_token_id) == 1
    assert counted(report) == {"control_tokens": 1}


# ---- rendered before


def test_rendered_text_has_one_bos() -> None:
    tok = tokenizer("bpe", bos=True)
    texts = ["<s>user: hi</s>", "user: hi</s>"]
    groups, _ = encode(tok, *(Demonstration(prompt="", completion=t) for t in texts))
    for group in groups:
        ids = [*group.prompt.tolist(), *group.completions[0].tolist()]
        assert ids[0] == 1
        assert ids.count(1) == 1
    assert groups[0].completions[0].tolist() == groups[1].completions[0].tolist()
    [group], _ = encode(tok, Demonstration(prompt="<s>[INST] hi [/INST]", completion=" yes </s>"))
    assert group.prompt.tolist().count(1) == 1


CHATML = "<|im_start|>user\nCapital of Peru?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("prompt", [CHATML, (Message("user", CHATML),)])
def test_a_prompt_that_the_template_wrote_is_not_rendered_again(prompt: Any) -> None:
    tok = tokenizer("bpe", "chatml")
    pair = PreferencePair(prompt=prompt, chosen="Lima<|im_end|>", rejected="Quito")
    [group], report = encode(tok, pair)
    [plain], _ = encode(tok, PreferencePair(prompt=talk("u:Capital of Peru?"), chosen="Lima", rejected="Quito"))
    assert group.prompt.tolist() == plain.prompt.tolist()
    assert [c.tolist() for c in group.completions] == [c.tolist() for c in plain.completions]
    assert (counted(report), report.notes) == ({"already_rendered": 1}, [])
    encoder = Encoder(tok, eos_ids=[tok.eos_token_id])
    assert encoder.encode_prompts([prompt])[0].tolist() == plain.prompt.tolist()


FOREIGN = {
    "[INST]": "<s>[INST] Capital of Peru? [/INST]",
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "Vicuna": "A chat. USER: Capital of Peru? ASSISTANT:",
    "Gemma": "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "Alpaca": "Below is an instruction.\n\n### Instruction:\nhi\n\n### Response:",
    "Llama 4": "<|begin_of_text|><|header_start|>user<|header_end|>\n\nhi<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n",
    "Granite": "<|start_of_role|>user<|end_of_role|>hi<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "Kimi": "<|im_user|>user<|im_middle|>hi<|im_end|><|im_assistant|>assistant<|im_middle|>",
    "Zephyr": "<|user|>\nhi</s>\n<|assistant|>\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_prompt_in_the_format_of_another_model_is_refused_under_a_template(name: str) -> None:
    tok, prompt = tokenizer("bpe", "chatml"), FOREIGN[name]
    record = Demonstration(prompt=prompt, completion="Lima", source="d.jsonl:1")
    with pytest.raises(ValueError, match=rf"d\.jsonl:1: .*written in the format {re.escape(name)} already"):
        list(Encoder(tok, eos_ids=[5]).encode([record], EncodeReport()))
    [group], _ = encode(tokenizer("bpe"), record)  # without a template it is taken as it is
    assert decode(tokenizer("bpe"), group.prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (CHATML + "It is", " Lima."),  # two whole texts whose answers begin alike
        (CHATML.removesuffix("<|im_start|>assistant\n"), "<|im_start|>assistant\nLima."),
        ((Message("system", "Be brief."), Message("user", CHATML)), "Lima."),
    ],
)
def test_rendered_text_that_is_no_prompt_alone_is_refused(prompt: Any, answer: str) -> None:
    record = Demonstration(prompt=prompt, completion=answer, source="d.jsonl:1")
    with pytest.raises(ValueError, match=r"d\.jsonl:1: .*a message begins with '<\|im_start\|>user', as rendered text"):
        list(Encoder(tokenizer("bpe", "chatml"), eos_ids=[5]).encode([record], EncodeReport()))


@pytest.mark.parametrize(
    "prompt",
    [
        "What does <|im_start|>assistant mean?",
        "Write [INST] and [/INST] in a list",
        "What does this do: [INST] hi [/INST]",
        "ASSISTANT:",
        "USER: who am I?",
        "",
    ],
)
def test_a_question_about_formats_is_a_question(prompt: str) -> None:
    assert format_of(prompt) is None


# ---- variables and the date


def test_variables_of_the_template_reach_it() -> None:
    tok = family("qwen3", "<think>", "</think>")
    thinking = {"template_kwargs": {"enable_thinking": False}}
    [group], _ = encode(tok, demo(ASKED, "a:Yes."), **thinking)
    theirs = tok.apply_chat_template(
        [ASKED[0].as_dict()], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert decode(tok, group.prompt) == theirs


def test_a_date_in_a_template_is_the_runs_own() -> None:
    tok = family("llama3_2", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>")
    first, second = ("26 Jul 2024", "27 Jul 2024")
    days = [date(2024, 7, 26), date(2024, 7, 27)]
    (a,), (b,) = (encode(tok, demo(ASKED, "a:Yes."), day=day)[0] for day in days)
    assert first in decode(tok, a.prompt)
    assert second in decode(tok, b.prompt)
    keys = [Encoder(tok, eos_ids=[5], day=day).key() for day in days]
    assert keys[0] != keys[1]
    today = tok.apply_chat_template([ASKED[0].as_dict()], tokenize=False, add_generation_prompt=True)
    [now], _ = encode(tok, demo(ASKED, "a:Yes."))
    assert decode(tok, now.prompt) == today
    without = [Encoder(tokenizer("bpe", "chatml"), eos_ids=[5], day=day).key() for day in days]
    assert without[0] == without[1]


def test_a_template_that_does_not_ask_for_an_answer_is_counted() -> None:
    """It writes a mark before an answer that a model is not given; where a turn's end asks, nothing is missing."""
    marked = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    asking = marked + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    bare = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    thought = marked.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    )
    thinking = thought + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    records = [demo(ASKED, f"a:answer {i}") for i in range(3)]
    for template, counted in ((marked, 3), (asking, 0), (bare, 0), (thinking, 0)):
        tok = tokenizer("bpe", "chatml")
        tok.chat_template = template
        assert encode(tok, *records)[1].counts["unasked"] == counted, template


def test_a_template_that_is_not_used_is_counted() -> None:
    """``template="never"`` for a tokenizer that has one; not of texts that hold its marks, nor where there is none."""
    tok = tokenizer("bpe", "chatml")
    records = [Demonstration(prompt="What is it?", completion=f"It is {i}.", source=f"d:{i}") for i in range(3)]
    rendered = tok.apply_chat_template(
        [{"role": "user", "content": "What?"}], tokenize=False, add_generation_prompt=True
    )
    records.append(Demonstration(prompt=str(rendered), completion="It is that.", source="d:9"))
    for template, there, counted in (("never", True, 3), ("auto", True, 0), ("never", False, 0)):
        if not there:
            tok.chat_template = None
        report = EncodeReport()
        list(Encoder(tok, eos_ids=[5], template=template).encode(records, report))
        assert report.counts["template_unused"] == counted
