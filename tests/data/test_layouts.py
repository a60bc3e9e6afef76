"""Every layout in which people hold preferences, recognised without being told, with the exact records it gives."""

import json
from dataclasses import replace

import pytest

from prefiere.data import formats
from prefiere.data.schema import Comparison, Demonstration, Judgement, Message, PreferencePair
from prefiere.data.values import DataError


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def system(text):
    return Message("system", text)


def records(tmp_path, rows, kind="pairs", **options):
    """What reading these rows gives (without sources), and the layout's name."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = formats.read(path, kind=kind, **options)
    return [replace(r, source="") for r in source], source


TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
U, C, R = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "good"},
    {"role": "assistant", "content": "bad"},
)
S = {"role": "system", "content": "be brief"}
RAW = PreferencePair(prompt="q", chosen="good", rejected="bad")
CHAT = PreferencePair(prompt=(user("q"),), chosen=(assistant("good"),), rejected=(assistant("bad"),))
WITH_SYSTEM = replace(CHAT, prompt=(system("be brief"), user("q")))

PAIRS = {
    "TRL standard": [({"prompt": "q", "chosen": "good", "rejected": "bad"}, RAW)],
    "TRL standard, margin, weight, soft label": [
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2, "weight": 0.5, "soft_label": 0.75},
            replace(RAW, margin=2.0, weight=0.5, label=0.75),
        )
    ],
    "TRL standard, implicit prompt": [
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, ("The sky is", " blue.", " green.")),
        # a torn word goes back to where it begins: un|happy, un|lucky
        ({"chosen": "I am unhappy", "rejected": "I am unlucky"}, ("I am", " unhappy", " unlucky")),
        # a line break stays with the prompt
        ({"chosen": "Q: 2+2?\n4", "rejected": "Q: 2+2?\n5"}, ("Q: 2+2?\n", "4", "5")),
        # one answer is the beginning of the other: the rest must not be empty
        ({"chosen": "Who?\nMe", "rejected": "Who?\nMe too"}, ("Who?\n", "Me", "Me too")),
        # no spaces in this script; the full-width question mark ends the prompt
        ({"chosen": "犬とは何？動物", "rejected": "犬とは何？友達"}, ("犬とは何？", "動物", "友達")),
    ],
    "TRL conversational": [
        ({"prompt": [U], "chosen": [C], "rejected": [R]}, CHAT),
        ({"prompt": [S, U], "chosen": [C], "rejected": [R]}, WITH_SYSTEM),
        ({"prompt": [U], "chosen": [C], "rejected": [R], "tools": TOOLS}, replace(CHAT, tools=tuple(TOOLS))),
        (
            {"prompt": [U], "chosen": [C], "rejected": [R], "tools": json.dumps(TOOLS)},
            replace(CHAT, tools=tuple(TOOLS)),
        ),
        ({"prompt": "q", "chosen": [C], "rejected": [R]}, CHAT),
        ({"prompt": [U], "chosen": "good", "rejected": "bad"}, CHAT),
    ],
    "TRL conversational, implicit prompt": [
        ({"chosen": [U, C], "rejected": [U, R]}, CHAT),
        ({"chosen": [S, U, C], "rejected": [S, U, R]}, WITH_SYSTEM),
        # the conversations part at an assistant turn and go on: the continuations have several turns
        (
            {"chosen": [U, C, U, C], "rejected": [U, R, U, R]},
            (
                (user("q"),),
                (assistant("good"), user("q"), assistant("good")),
                (assistant("bad"), user("q"), assistant("bad")),
            ),
        ),
        # they part at a user turn: the prompt goes back to where both go on with an answer
        (
            {"chosen": [U, C, U, C], "rejected": [U, C, {"role": "user", "content": "other"}, R]},
            (
                (user("q"),),
                (assistant("good"), user("q"), assistant("good")),
                (assistant("good"), user("other"), assistant("bad")),
            ),
        ),
    ],
    "HH-RLHF": [
        (
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant:  good\n\nreally",
                "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant: bad",
            },
            ((user("hi"), assistant("hello"), user("q")), (assistant("good\n\nreally"),), (assistant("bad"),)),
        ),
        # they part before the last answer: the common part ends at the last "Assistant:" of both
        (
            {
                "chosen": "\n\nHuman: q\n\nAssistant: good\n\nHuman: more\n\nAssistant: yes",
                "rejected": "\n\nHuman: q\n\nAssistant: bad",
            },
            ((user("q"),), (assistant("good"), user("more"), assistant("yes")), (assistant("bad"),)),
        ),
    ],
    "ultrafeedback_binarized": [
        (
            {
                "prompt": "q",
                "prompt_id": "1",
                "chosen": [U, C],
                "rejected": [U, R],
                "messages": [U, C],
                "score_chosen": 8.0,
                "score_rejected": 6.5,
            },
            replace(CHAT, margin=1.5),
        )
    ],
    "argilla ultrafeedback": [
        (
            {
                "source": "evol",
                "prompt": "q",
                "chosen": [U, C],
                "chosen-rating": 5,
                "chosen-model": "m",
                "rejected": [U, R],
                "rejected-rating": 2,
                "rejected-model": "n",
            },
            replace(CHAT, margin=3.0),
        )
    ],
    "Alpaca pairwise": [
        ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, CHAT),
        (
            {"instruction": "add", "input": "1 2", "chosen": "good", "rejected": "bad"},
            replace(CHAT, prompt=(user("add\n1 2"),)),
        ),
        (
            {
                "instruction": "q",
                "chosen": "good",
                "rejected": "bad",
                "system": "be brief",
                "history": [["hi", "hello"]],
            },
            replace(CHAT, prompt=(system("be brief"), user("hi"), assistant("hello"), user("q"))),
        ),
    ],
    "ShareGPT ranking": [
        (
            {
                "conversations": [{"from": "system", "value": "be brief"}, {"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            WITH_SYSTEM,
        )
    ],
    "Axolotl": [
        (
            {"system": "be brief", "instruction": "q", "chosen_response": "good", "rejected_response": "bad"},
            WITH_SYSTEM,
        ),
        ({"system": "be brief", "input": "q", "chosen": "good", "rejected": "bad"}, WITH_SYSTEM),
        ({"system": "", "question": "q", "chosen": "good", "rejected": "bad"}, CHAT),
    ],
    "Axolotl chat": [({"messages": [S, U], "chosen": C, "rejected": R}, WITH_SYSTEM)],
    "OpenAI preference": [
        (
            {"input": {"messages": [U], "tools": TOOLS}, "preferred_output": [C], "non_preferred_output": [R]},
            replace(CHAT, tools=tuple(TOOLS)),
        )
    ],
    "ms-swift": [
        ({"messages": [S, U, C], "rejected_response": "bad"}, WITH_SYSTEM),
        ({"messages": [S, U, C], "rejected_messages": [S, U, R]}, WITH_SYSTEM),
    ],
    "torchtune": [
        ({"chosen_conversations": [U, C], "rejected_conversations": [U, R]}, CHAT),
        (
            {
                "chosen_conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
                "rejected_conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad"}],
            },
            CHAT,
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "row", "expected"), [(name, row, expected) for name, cases in PAIRS.items() for row, expected in cases]
)
def test_pair_layouts(tmp_path, name, row, expected):
    if isinstance(expected, tuple):
        expected = PreferencePair(prompt=expected[0], chosen=expected[1], rejected=expected[2])
    got, source = records(tmp_path, [row])
    assert source.layout.name == name.split(", margin")[0]
    assert got == [expected]
    assert str(source.counts) == "1 read, 1 kept"


def compared(preference, prompt="q", a="x", b="y", **more):
    if isinstance(prompt, tuple):
        a, b = (assistant(a),), (assistant(b),)
    return Comparison(prompt=prompt, answer_a=a, answer_b=b, preference=preference, **more)


def turns(role_a, role_b, *texts):
    return [{"role": (role_a, role_b)[i % 2], "content": t} for i, t in enumerate(texts)]


ARENA = {
    "question_id": "1",
    "model_a": "m",
    "model_b": "n",
    "judge": "user_7",
    "conversation_a": turns("user", "assistant", "q", "x"),
    "conversation_b": turns("user", "assistant", "q", "y"),
    "turn": 1,
    "language": "English",
    "tstamp": 0.0,
}
HELPSTEER = {
    "domain": "general",
    "context": turns("user", "assistant", "hi", "hello", "q"),
    "response1": "x",
    "response2": "y",
    "individual_preference": [{"score": -2, "reasoning": "", "feedback": ""}],
}
SUMMARIES = {
    "info": {"id": "t3", "post": "long", "title": "T", "subreddit": "r1"},
    "summaries": [{"text": " x", "policy": "sup", "note": None}, {"text": " y", "policy": "ref", "note": None}],
    "worker": "w1",
    "batch": "batch9",
    "split": "train",
}
ARGILLA = {"prompt": "q", "response1": "x", "response2": "y", "preference.suggestion": "response1"}
STUDIO = {"id": 1, "data": {"prompt": "q", "answer1": "x", "answer2": "y"}}


def pairwise(side):
    return [{"type": "pairwise", "value": {"selected": side}, "from_name": "pw"}]


ASKED = (user("q"),)
ARENA_SAYS = {"prompt": ASKED, "annotator": "user_7", "created_at": "1970-01-01T00:00:00+00:00"}
STEERED = (user("hi"), assistant("hello"), user("q"))
POST = "SUBREDDIT: r/r1\n\nTITLE: T\n\nPOST: long\n\nTL;DR:"

COMPARISONS = [
    ("Arena", ARENA | {"winner": "model_a"}, [compared("a", **ARENA_SAYS)]),
    ("Arena", ARENA | {"winner": "model_b"}, [compared("b", **ARENA_SAYS)]),
    ("Arena", ARENA | {"winner": "tie"}, [compared("tie", **ARENA_SAYS)]),
    ("Arena", ARENA | {"winner": "tie (bothbad)"}, [compared("both_bad", **ARENA_SAYS)]),
    # only the first round was judged: what follows it is not part of the comparison
    (
        "Arena",
        ARENA
        | {
            "winner": "model_a",
            "conversation_a": turns("user", "assistant", "q", "x", "more", "p"),
            "conversation_b": turns("user", "assistant", "q", "y", "more", "r"),
        },
        [compared("a", **ARENA_SAYS)],
    ),
    (
        "Arena CSV",
        {
            "prompt": "q",
            "response_a": "x",
            "response_b": "y",
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        },
        [compared("b", ASKED)],
    ),
    (
        "Arena CSV",
        {
            "prompt": '["q","more"]',
            "response_a": '["x","p"]',
            "response_b": '["y","r"]',
            "winner_model_a": "0",
            "winner_model_b": "0",
            "winner_tie": "1",
        },
        [
            Comparison(
                prompt=ASKED,
                answer_a=(assistant("x"), user("more"), assistant("p")),
                answer_b=(assistant("y"), user("more"), assistant("r")),
                preference="tie",
            )
        ],
    ),
    ("HelpSteer3", HELPSTEER | {"overall_preference": -3}, [compared("a", STEERED, strength=1.0)]),
    ("HelpSteer3", HELPSTEER | {"overall_preference": 1}, [compared("b", STEERED, strength=1 / 3)]),
    ("HelpSteer3", HELPSTEER | {"overall_preference": 0}, [compared("tie", STEERED)]),
    # 8 on a scale of 9 with 5 in the middle: 3 of 4 steps towards the second
    (
        "OpenAI summarize",
        SUMMARIES | {"choice": 1, "extra": {"confidence": 8}},
        [compared("b", POST, " x", " y", strength=0.75, annotator="w1")],
    ),
    (
        "OpenAI summarize",
        SUMMARIES | {"choice": 0, "extra": {"confidence": None}},
        [compared("a", POST, " x", " y", annotator="w1")],
    ),
    (
        "Gemini",
        {
            "system_instruction": {"parts": [{"text": "be brief"}]},
            "contents": [{"role": "user", "parts": [{"text": "q"}]}],
            "completions": [
                {"score": 0, "completion": {"role": "model", "parts": [{"text": "x"}]}},
                {"score": 1, "completion": {"role": "model", "parts": [{"text": "y"}]}},
            ],
        },
        [compared("b", (system("be brief"), user("q")))],
    ),
    (
        "Argilla",
        ARGILLA
        | {
            "comment.responses": ["fine"],
            "preference.responses": ["response2", "response1", "response1"],
            "preference.responses.users": ["u1", "u2", "u3"],
            "preference.responses.status": ["submitted", "draft", "submitted"],
        },
        [compared("b", annotator="u1"), compared("a", annotator="u3")],
    ),
    (
        "Argilla",
        ARGILLA
        | {
            "order.responses": [[{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}]],
            "order.responses.users": ["u1"],
            "order.responses.status": ["submitted"],
        },
        [compared("b", annotator="u1")],
    ),
    (
        "Label Studio",
        STUDIO
        | {
            "annotations": [
                {"completed_by": 4, "created_at": "2026-01-02T03:04:05Z", "result": pairwise("left")},
                {"completed_by": {"email": "a@b.c"}, "was_cancelled": True, "result": pairwise("right")},
                {"completed_by": {"email": "a@b.c"}, "was_cancelled": False, "result": pairwise("right")},
            ]
        },
        [compared("a", annotator="4", created_at="2026-01-02T03:04:05Z"), compared("b", annotator="a@b.c")],
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), COMPARISONS)
def test_comparison_layouts(tmp_path, name, row, expected):
    got, source = records(tmp_path, [row], kind="comparisons")
    assert source.layout.name == name
    assert got == expected


def test_pairs_from_comparisons(tmp_path):
    verdicts = ["model_a", "model_b", "tie", "tie (bothbad)"]
    got, source = records(tmp_path, [ARENA | {"winner": w} for w in verdicts])
    x, y = (assistant("x"),), (assistant("y"),)
    who = ARENA_SAYS["annotator"]
    assert got == [
        PreferencePair(prompt=ASKED, chosen=x, rejected=y, annotator=who, chosen_first=True),
        PreferencePair(prompt=ASKED, chosen=y, rejected=x, annotator=who, chosen_first=False),
        PreferencePair(prompt=ASKED, chosen=x, rejected=y, annotator=who, label=0.5),
    ]
    assert source.counts.dropped == {"both bad": 1}
    named = {"prompt": "q", "chosen": "x", "rejected": "y", "rater": "ana"}
    got, _ = records(tmp_path, [named])
    assert got == [PreferencePair(prompt="q", chosen="x", rejected="y", annotator="ana")]


def test_strength_becomes_a_soft_label(tmp_path):
    got, _ = records(tmp_path, [HELPSTEER | {"overall_preference": p} for p in (-3, 2, 1, 0)])
    assert [(p.margin, pytest.approx(p.label), p.weight, p.chosen[0].content) for p in got] == [
        (None, 0.9, 1.0, "x"),
        (None, 0.8, 1.0, "y"),
        (None, 0.7, 1.0, "y"),
        (None, 0.5, 1.0, "x"),
    ]
    got, _ = records(tmp_path, [SUMMARIES | {"choice": 1, "extra": {"confidence": 8}}])
    assert (got[0].margin, got[0].label) == (None, pytest.approx(0.825))  # three quarters of a scale of four


def test_a_soft_label_gives_its_strength_back(tmp_path):
    for strength in (1 / 3, 0.5, 1.0):
        row = {"prompt": "q", "answer_a": "x", "answer_b": "y", "preference": "b", "strength": strength}
        (pair,), _ = records(tmp_path, [row])
        again = {"prompt": "q", "chosen": pair.chosen, "rejected": pair.rejected, "soft_label": pair.label}
        (said,), _ = records(tmp_path, [again], kind="comparisons")
        assert said.strength == pytest.approx(strength)


NECTAR = {
    "prompt": "\n\nHuman: q\n\nAssistant: ",
    "answers": [
        {"answer": "middle", "model": "m", "rank": 2.0},
        {"answer": "worst", "model": "n", "rank": 3.0},
        {"answer": "best", "model": "o", "rank": 1.0},
    ],
}


def test_nectar(tmp_path):
    got, source = records(tmp_path, [NECTAR])
    assert source.layout.name == "Nectar"
    assert got == [PreferencePair(prompt=ASKED, chosen=(assistant("best"),), rejected=(assistant("worst"),))]
    got, source = records(tmp_path, [NECTAR], pairs_per_prompt="all")
    assert [(p.chosen[0].content, p.rejected[0].content) for p in got] == [
        ("best", "middle"),
        ("best", "worst"),
        ("middle", "worst"),
    ]
    assert (source.counts.read, source.counts.kept) == (1, 3)
    tied = {"prompt": "q", "answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 1}]}
    got, source = records(tmp_path, [tied])
    assert not got
    assert source.counts.dropped == {"tie": 1}


SEVERAL = [
    {
        "source": "flan",
        "instruction": "q",
        "models": ["m", "n", "o"],
        "completions": [
            {"response": "middle", "overall_score": 7.0, "fine-grained_score": 2.5, "critique": "fair"},
            {"response": "worst", "overall_score": 3.5, "fine-grained_score": 4.0, "critique": "poor"},
            {"response": "best", "overall_score": 8.5, "fine-grained_score": 1.0, "critique": "good"},
        ],
        "correct_answers": ["None"],
    },
    {"instruction": "q", "generations": ["middle", "worst", "best"], "ratings": [3, 1, 5], "generation_models": ["m"]},
    {
        "question": "q",
        "responses": [{"text": "middle", "rank": 2}, {"text": "worst", "rank": 3}, {"text": "best", "rank": 1}],
    },
    {"question": "q", "all_generated_responses": ["middle", "worst", "best"], "ranks": [2, 3, 1]},
]


@pytest.mark.parametrize("row", SEVERAL, ids=["UltraFeedback", "distilabel", "objects with ranks", "ranks beside"])
def test_several_answers_with_a_number_each(tmp_path, row):
    got, source = records(tmp_path, [row])
    assert source.layout.name == "several answers, rated"
    assert [p.chosen[0].content + ">" + p.rejected[0].content for p in got] == ["best>worst"]
    assert got[0].prompt == ASKED
    got, source = records(tmp_path, [row], pairs_per_prompt="all")
    assert [p.chosen[0].content + ">" + p.rejected[0].content for p in got] == [
        "best>middle",
        "best>worst",
        "middle>worst",
    ]
    got, source = records(tmp_path, [row], kind="prompts")
    assert [p.prompt for p in got] == [ASKED]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": ["x", "y", "z"], "ranking": [2, 0, 1]},  # the best is the third, or the second?
        {"prompt": "q", "responses": [{"text": "x", "toxicity": 0.9}, {"text": "y", "toxicity": 0.1}]},
        {"prompt": "q", "responses": [{"text": "x", "score": 1, "rating": 5}, {"text": "y", "score": 2, "rating": 3}]},
    ],
)
def test_numbers_that_do_not_say_what_they_mean_are_not_taken(tmp_path, row):
    with pytest.raises(DataError, match="has no known layout for pairs"):
        records(tmp_path, [row])


def test_turns_of_a_conversation_are_no_rivals(tmp_path):
    turns = [{"role": "user", "text": "hello", "score": 0.1}, {"role": "assistant", "text": "hi", "score": 0.9}]
    with pytest.raises(DataError, match="has no known layout for pairs"):
        records(tmp_path, [{"prompt": "q", "conversation": turns}])


def test_an_answer_that_is_stated_is_imitated_whatever_stands_beside_it(tmp_path):
    row = {"instruction": "q", "output": "gold", "generations": ["x", "y"], "ratings": [1, 2]}
    (got,), source = records(tmp_path, [row], kind="demonstrations")
    assert got.completion[0].content == "gold"
    assert source.unread_lines() == ["columns not read: generations, ratings"]
    (got,), _ = records(tmp_path, [row])
    assert (got.chosen[0].content, got.rejected[0].content) == ("y", "x")


def test_answers_without_a_number_each(tmp_path):
    rows = [
        {"prompt": "q", "responses": ["x", "y"], "scores": [1.0, 2.0]},
        {"prompt": "q", "responses": ["x", "y"], "scores": [1.0, None]},
        {"prompt": "q", "responses": ["x", "y", "z"], "scores": [1.0, 2.0]},
    ]
    with pytest.raises(DataError, match=r"data\.jsonl:3 .*3 answers, and 2 numbers in scores"):
        records(tmp_path, rows)
    got, source = records(tmp_path, rows[:2])
    assert [(p.chosen, p.rejected) for p in got] == [("y", "x")]
    assert source.counts.dropped == {"unanswered": 1}


def test_two_conversations_with_a_score_each_begin_with_their_prompt(tmp_path):
    """Not with their source."""
    said = {side: [U, assistant(side).as_dict()] for side in ("x", "y")}
    row = {
        "id": "1",
        "conv_A": said["x"],
        "conv_B": said["y"],
        "conv_A_rating": 0.0,
        "conv_B_rating": 1.0,
        "source": "summarize",
    }
    got, _ = records(tmp_path, [row])
    y, x = (assistant("y"),), (assistant("x"),)
    assert got == [PreferencePair(prompt=ASKED, chosen=y, rejected=x, chosen_first=False)]
    got, _ = records(tmp_path, [row], kind="prompts")
    assert [p.prompt for p in got] == [ASKED]


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ("thumbs_up", True),
        ("thumbs down", False),
        ("Good", True),
        ("bad", False),
        ("liked", True),
        ("Unhelpful", False),
    ],
)
def test_words_that_call_an_answer_good_or_bad(tmp_path, said, good):
    (got,), source = records(tmp_path, [{"query": "q", "response": "x", "feedback": said}], kind="judgements")
    assert source.layout.name == "Alpaca KTO"
    assert got.desirable is good


@pytest.mark.parametrize("said", ["positive", "not good", "good and bad", "sports", "3"])
def test_other_words_call_it_nothing(tmp_path, said):
    with pytest.raises(DataError, match="holds answers to imitate"):
        records(tmp_path, [{"query": "q", "response": "x", "label": said}], kind="judgements")


@pytest.mark.parametrize(
    ("row", "advised"),
    [
        ({"prompt": "q", "preferred": "it is", "dispreferred": "it was"}, "chosen: preferred, rejected: dispreferred"),
        ({"prompt": "q", "win": "it is x", "lose": "it is y"}, "columns={chosen: win, rejected: lose}"),
        ({"text_chosen": "it is x", "text_rejected": "it is y"}, "chosen: text_chosen, rejected: text_rejected"),
        (
            {"q": "q", "reply_x": "x", "reply_y": "y", "Which is better?": "A is slightly better"},
            'preference: "Which is better?"',
        ),
        (
            {"orig_instruction": "q", "orig_response_A": "x", "orig_response_B": "y", "orig_preference": "A",
             "instruction": "Judge both.", "output": "A is better."},
            "answer_a: orig_response_A, answer_b: orig_response_B, preference: orig_preference",
        ),
    ],
)  # fmt: skip
def test_what_is_advised(tmp_path, row, advised):
    with pytest.raises(DataError) as e:
        records(tmp_path, [row])
    assert advised in str(e.value)


JUDGEMENTS = [
    ("TRL unpaired (KTO)", {"prompt": "q", "completion": "x", "label": True}, "q", "x", True),
    ("TRL unpaired (KTO)", {"prompt": [U], "completion": [C], "label": 0}, ASKED, (assistant("good"),), False),
    (
        "ShareGPT KTO",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}], "kto_tag": False},
        ASKED,
        (assistant("x"),),
        False,
    ),
    (
        "ShareGPT KTO",
        {"messages": turns("user", "assistant", "hi", "hello", "q", "x"), "label": True},
        STEERED,
        (assistant("x"),),
        True,
    ),
    ("Alpaca KTO", {"instruction": "q", "input": "", "output": "x", "kto_tag": True}, ASKED, (assistant("x"),), True),
    ("TRL unpaired (KTO)", {"prompt": "q", "response": "x", "label": False}, "q", "x", False),
    ("Alpaca KTO", {"question": "q", "answer": "x", "label": 0}, ASKED, (assistant("x"),), False),
    ("Alpaca KTO", {"instruction": "q", "output": "x", "label": "true"}, ASKED, (assistant("x"),), True),
]


@pytest.mark.parametrize(("name", "row", "prompt", "completion", "desirable"), JUDGEMENTS)
def test_judgement_layouts(tmp_path, name, row, prompt, completion, desirable):
    got, source = records(tmp_path, [row], kind="judgements")
    assert source.layout.name == name
    assert got == [Judgement(prompt=prompt, completion=completion, desirable=desirable)]
    with pytest.raises(formats.DataError, match=r"data.jsonl: no pairs in layout .*KTO takes them as such"):
        formats.read(tmp_path / "data.jsonl", kind="pairs")


def test_judgements_from_other_kinds(tmp_path):
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "weight": 2}
    got, _ = records(tmp_path, [row], kind="judgements")
    assert got == [
        Judgement(prompt="q", completion="good", desirable=True, weight=2),
        Judgement(prompt="q", completion="bad", desirable=False, weight=2),
    ]
    got, _ = records(tmp_path, [row | {"soft_label": 0.25}], kind="judgements")
    assert [(j.completion, j.desirable) for j in got] == [("bad", True), ("good", False)]
    got, source = records(tmp_path, [ARENA | {"winner": w} for w in ("tie (bothbad)", "tie")], kind="judgements")
    assert [(j.completion[0].content, j.desirable) for j in got] == [("x", False), ("y", False)]
    assert source.counts.dropped == {"tie": 1}


DEMONSTRATIONS = [
    ("prompt and completion", {"prompt": "q", "completion": " x"}, "q", " x"),
    (
        "prompt and completion",
        {"prompt": [S, U], "completion": [C]},
        (system("be brief"), user("q")),
        (assistant("good"),),
    ),
    ("prompt and response", {"prompt": "q", "response": "x"}, "q", "x"),
    ("messages", {"messages": [S, U, C]}, (system("be brief"), user("q")), (assistant("good"),)),
    (
        "messages",  # every answer of a conversation is learnt
        {"messages": turns("user", "assistant", "hi", "hello", "q", "x")},
        (user("hi"),),
        (assistant("hello"), user("q"), assistant("x")),
    ),
    (
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}], "system": "be brief"},
        (system("be brief"), user("q")),
        (assistant("x"),),
    ),
    ("Alpaca", {"instruction": "add", "input": "1 2", "output": "x"}, (user("add\n1 2"),), (assistant("x"),)),
    ("Alpaca", {"question": "q", "answer": "x"}, ASKED, (assistant("x"),)),
    ("text", {"text": "Érase una vez"}, "", "Érase una vez"),
]


@pytest.mark.parametrize(("name", "row", "prompt", "completion"), DEMONSTRATIONS)
def test_demonstration_layouts(tmp_path, name, row, prompt, completion):
    got, source = records(tmp_path, [row], kind="demonstrations")
    assert source.layout.name == name
    assert got == [Demonstration(prompt=prompt, completion=completion)]
    for kind in ("pairs", "judgements"):
        with pytest.raises(formats.DataError, match="answers to imitate"):
            formats.read(tmp_path / "data.jsonl", kind=kind)


def test_demonstrations_from_other_kinds(tmp_path):
    got, _ = records(tmp_path, [PAIRS["TRL conversational"][1][0]], kind="demonstrations")
    assert got == [Demonstration(prompt=(system("be brief"), user("q")), completion=(assistant("good"),))]
    for answer in ("completion", "response"):
        rows = [{"prompt": "q", answer: c, "label": c == "x"} for c in ("x", "y")]
        got, source = records(tmp_path, rows, kind="demonstrations")
        assert got == [Demonstration(prompt="q", completion="x")]
        assert source.counts.dropped == {"undesirable": 1}
    got, source = records(tmp_path, [{"messages": [U, C, U]}, {"messages": [C, U]}], kind="demonstrations")
    assert got == [Demonstration(prompt=ASKED, completion=(assistant("good"),))]
    assert source.counts.changed == {"unanswered last turn cut": 1}
    assert source.counts.dropped == {"empty completion": 1}


PROMPTS = [
    ({"prompt": "q"}, "q"),
    ({"prompt": [S, U]}, (system("be brief"), user("q"))),
    ({"question": "q", "system": "be brief"}, (system("be brief"), user("q"))),
    ({"instruction": "q"}, ASKED),
    ({"text": "q"}, "q"),
    ("q", "q"),
    ({"messages": [U]}, ASKED),
    ({"messages": turns("user", "assistant", "hi", "hello", "q", "x")}, STEERED),
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "q"),
    (NECTAR, ASKED),
    ({"prompt": "q", "completion": "x"}, "q"),
]


@pytest.mark.parametrize(("row", "prompt"), PROMPTS)
def test_prompts_come_from_everything(tmp_path, row, prompt):
    assert records(tmp_path, [row], kind="prompts")[0] == [formats.Prompt(prompt=prompt)]


def test_comparisons_from_pairs(tmp_path):
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad", "soft_label": p} for p in (1, 0.5, 0.25)]
    got, _ = records(tmp_path, rows, kind="comparisons")
    assert [(c.answer_a, c.answer_b, c.preference, c.strength) for c in got] == [
        ("good", "bad", "a", None),
        ("good", "bad", "tie", None),
        ("good", "bad", "b", 0.5),
    ]


def test_roles_and_message_keys(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    row = {
        "messages": [
            {"from": "human", "value": "time?", "name": "Ana"},
            call,
            {"from": "observation", "value": "noon"},
            {"role": "model", "content": [{"type": "text", "text": "It is noon."}]},
        ]
    }
    (got,), _ = records(tmp_path, [row], kind="demonstrations")
    assert got.prompt == (Message("user", "time?", {"name": "Ana"}),)
    assert got.completion == (
        Message("assistant", "", {"tool_calls": call["tool_calls"]}),
        Message("tool", "noon"),
        assistant("It is noon."),
    )
