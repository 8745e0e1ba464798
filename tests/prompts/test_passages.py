"""Passages as prompts show them: no control token survives, limits are kept, prompts fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrank.backends import tokens
from llmrank.errors import SpecError, TooLong
from llmrank.plan import Ask, Attend, Embed, Grade, Likelihood, Order, Pick, Write
from llmrank.prompts import PromptSet
from llmrank.prompts.passages import (
    GAP,
    LEAST,
    TRUNCATIONS,
    Limits,
    Truncation,
    clean,
    level,
    prompt_tokens,
    reply_tokens,
    shorten,
)
from llmrank.request import Request, Tokenizer
from llmrank.types import Document, Query

CONTROL = {
    "Llama 2": "<s> </s> <unk> [INST] [/INST] <<SYS>> <</SYS>>",
    "Llama 3": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> "
    "<|python_tag|> <|finetune_right_pad_id|> <|reserved_special_token_0|>",
    "Llama 4": "<|header_start|> <|header_end|> <|eot|> <|image|> <|patch|>",
    "Mistral": "[INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT] [IMG] [IMG_BREAK] [IMG_END] "
    "[PREFIX] [MIDDLE] [SUFFIX] [AUDIO] [BEGIN_AUDIO] [ARGS] [CALL_ID] [THINK] [/THINK] "
    "<SPECIAL_20> <pad>",
    "ChatML, Qwen": "<|im_start|> <|im_end|> <|endoftext|> <|object_ref_start|> <|vision_start|> "
    "<|fim_prefix|> <|repo_name|> <tool_call> </tool_call> <tool_response> </tool_response> "
    "<think> </think>",
    "Gemma": "<bos> <eos> <pad> <unk> <mask> <2mass> [@BOS@] [multimodal] <unused0> <unused98> "
    "<start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token>",
    "Gemma 4": '<|turn> <turn|> <|channel> <channel|> <|think|> <|tool_call> <tool_call|> <|"|>',
    "DeepSeek": "<｜begin▁of▁sentence｜> <｜▁pad▁｜> <｜User｜> <｜Assistant｜> <think> "
    "<｜tool▁calls▁begin｜> <｜fim▁hole｜> <|EOT|> ｜DSML｜ <｜DSML｜invoke> </｜DSML｜invoke>",
    "Phi": "<|system|> <|user|> <|assistant|> <|end|> <|im_sep|> <|dummy_0|> <|placeholder1|>",
    "harmony": "<|start|> <|end|> <|message|> <|channel|> <|constrain|> <|return|> <|call|>",
    "Cohere": "<BOS_TOKEN> <EOS_TOKEN> <EOP_TOKEN> <MASK_TOKEN> <PAD> <UNK> <CLS> <SEP> "
    "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> "
    "<|START_THINKING|> <|START_RESPONSE|>",
    "GLM": "[gMASK] [sMASK] [MASK] <sop> <eop> <|user|> <|observation|> <|begin_of_image|> "
    "<arg_key> </arg_key> <arg_value> <tool_call>",
    "Granite": "<|start_of_role|> <|end_of_role|> <|end_of_text|> <|tool_call|> <fim_prefix> "
    "<fim_suffix> <reponame>",
    "Falcon": ">>TITLE<< >>ABSTRACT<< >>QUESTION<< >>ANSWER<< >>UNUSED_1<< <|endoftext|>",
    "SmolLM": "<repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> "
    "<jupyter_output> <jupyter_script> <empty_output>",
    "EXAONE": "[|system|] [|user|] [|assistant|] [|endofturn|]",
    "MiniMax": "]~!b[ ]~b] [e~[ ]<]minimax[>[ <minimax:tool_call>",
    "Kimi": "[BOS] [EOS] [EOT] [PAD] [UNK] [extra_id_0] [start_header_id] <|im_middle|>",
    "Seed": "<seed:bos> <seed:eos> <seed:think> </seed:think> <seed:tool_call>",
    "InternLM, Baichuan": "[UNUSED_TOKEN_145] <|action_start|> <eoh> <eoa> <reserved_106>",
    "Ling, Hunyuan, K2": "<role> </role> <|role_end|> <｜hy_User｜> <ifm|think> </ifm|tool_call>",
    "T5": "<extra_id_0> <pad> </s>",
    "BERT": "[CLS] [SEP] [MASK] [PAD] [UNK] [unused12]",
}
ALL = sorted({token for family in CONTROL.values() for token in family.split()})
PIECES = ["<", "<<", "|", "｜", ">", ">>", "[", "]", "/", "~", "!", "b", "_", " ", "\n", "s", "a"]

ORDINARY = [
    "if a < b and b > c | d, see <b>bold</b> [12] [sic] {x} and 5 > 3",
    "a<b>c, x<y && y>z, 1<2>0, p<0.05, n>=3 <= 4 -> => <- << 2 >> 1",
    '<div class="note"><p>Hi<br/></p><!-- x --></div> <a href="?a=1|2">y</a> <table><tr><td>',
    "List<String> m; std::vector<int> v; Map<K, V<T>> w; cout << x >> y; a||b; a|b; x |= 1",
    "xs |> List.map f <| ys; p <|> q; [| 1; 2 |]; E[|x|] = 0; {|a|}",
    "[USA] [1] [a-z] [TODO] [prefix] [img] array[i][j] arr[MASK_ALL] [ ] [x] (|q| < 1)",
    "$ cp <source> <target> >/dev/null 2>&1; <name@example.com> <https://x.org/a_b?c=d>",
    "see <foo>, <T>, <K, V> and <!DOCTYPE html>; ~/.ssh [e~f] ]] [[wiki|link]]",
]


def test_no_control_token_survives() -> None:
    for token in ALL:
        assert token not in clean(token)
        assert token not in clean(f"a{token}system{token}")
        assert "".join(clean(token).split()) == token


@given(st.lists(st.sampled_from([*ALL, *PIECES]), max_size=12), st.integers(0, 1 << 16))
def test_no_control_token_comes_of_others_that_are_broken(parts: list[str], at: int) -> None:
    whole = "".join(parts)
    # One inside another, wherever it is cut open.
    nested = whole[: at % (len(whole) + 1)] + "<|im_start|>" + whole[at % (len(whole) + 1) :]
    for text in (whole, nested):
        cleaned = clean(text)
        assert not any(token in cleaned for token in ALL)
        assert "".join(cleaned.split()) == "".join(text.split())
        assert clean(cleaned) == cleaned


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <|x|> b", "a < |x| > b"),
        ("<<|x|>|>", "<< |x| >| >"),
        ("vector<uint8_t>", "vector< uint8_t>"),
        ("</s>", "< /s>"),
        ("[INST]", "[ INST]"),
    ],
)
def test_a_token_is_broken_by_as_little_as_a_space(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize(
    ("truncation", "shown"),
    [("head", "a b c"), ("tail", "e f g"), ("middle", "a ... g")],
)
def test_which_words_are_kept(truncation: Truncation, shown: str) -> None:
    limits = Limits(3, None, truncation)
    assert shorten("a b c d e f g", limits, None) == (shown, True)
    assert shorten("a b c", limits, None) == ("a b c", False)


@pytest.mark.parametrize(("words", "shown"), [(1, "a"), (2, "a b"), (3, "a ... d")])
def test_both_ends_are_shown_where_there_is_room_for_them(words: int, shown: str) -> None:
    assert shorten("a b c d", Limits(words, None, "middle"), None) == (shown, True)


WORDS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12)


@given(WORDS, st.integers(1, 13), st.sampled_from(TRUNCATIONS))
def test_cut_text_has_as_many_words_as_its_limit_says(
    given: list[str], limit: int, how: Truncation
) -> None:
    shown, cut = shorten(" ".join(given), Limits(limit, None, how), None)
    words = shown.split()
    assert len(words) == min(limit, len(given))
    assert cut == (len(given) > limit)
    if cut and how == "middle" and limit > 2:
        at = words.index("...")
        first, last = words[:at], words[at + 1 :]
        assert (first, last) == (given[: len(first)], given[-len(last) :])
        assert len(first) - len(last) in (0, 1)
    else:
        assert words == (given[-len(words) :] if how == "tail" else given[: len(words)])


@pytest.mark.parametrize(
    ("truncation", "shown"),
    [("head", "aaaabbbb"), ("tail", "ccccdddd"), ("middle", "aaaabbbb")],
)
def test_which_tokens_are_kept(truncation: Truncation, shown: str) -> None:
    text = "aaaabbbbccccdddd"
    assert shorten(text, Limits(None, 2, truncation), tokens.Estimate()) == (shown, True)


def test_both_ends_are_shown_with_a_gap() -> None:
    text = "aaaabbbbccccddddeeeeffff"
    shown = shorten(text, Limits(None, 5, "middle"), tokens.Estimate())
    assert shown == ("aaaabbbb" + GAP + "ffff", True)
    # The mark is two tokens, so that one would be left: too few for both ends.
    assert shorten(text, Limits(None, 3, "middle"), tokens.Estimate()) == ("aaaabbbbcccc", True)


@pytest.fixture(scope="module")
def tiktoken() -> Tokenizer:
    name = next((n for n in ("o200k_base", "cl100k_base") if tokens._obtained(n)), None)
    if name is None:
        pytest.skip("tiktoken has no cached encoding here")
    return tokens.Tiktoken(name)


@pytest.fixture(scope="module")
def smollm() -> tokens.Pretrained:
    pytest.importorskip("transformers")
    from llmrank.backends.gguf import converted_default

    tokenizer = tokens.Pretrained(lambda: str(converted_default()))
    tokenizer.count("loaded")
    return tokenizer


nasty = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("ab c  é́ñ🙂👩‍👩‍👧🇩🇪한글漢字ﷺ\u200b\u202eक्षि½²\ud800\udfffabcdefgh 0123"),
    ),
    max_size=40,
).map(clean)
truncations = st.sampled_from(TRUNCATIONS)


def check_cut(text: str, limit: int, truncation: Truncation, tokenizer: Tokenizer) -> None:
    shown, cut = shorten(text, Limits(None, limit, truncation), tokenizer)
    assert tokenizer.count(shown) <= limit
    # Some tokenizers have no token for some control characters, which are then left in.
    assert tokenizer.count(tokenizer.head(text, 0)) == tokenizer.count("") == 0
    assert cut == (tokenizer.count(text) > limit)
    assert cut or shown == text
    if truncation == "head" or not cut:
        assert text.startswith(shown)
    elif truncation == "tail":
        assert text.endswith(shown)
    elif GAP in shown and GAP not in text:
        first, last = shown.split(GAP)
        assert text.startswith(first)
        assert text.endswith(last)


@given(nasty, st.integers(1, 12), truncations)
def test_cut_text_is_within_its_limit_by_estimate(text: str, limit: int, how: Truncation) -> None:
    check_cut(text, limit, how, tokens.Estimate())


@given(nasty, st.integers(1, 12), truncations)
def test_cut_text_is_within_its_limit_by_tiktoken(
    tiktoken: Tokenizer, text: str, limit: int, how: Truncation
) -> None:
    check_cut(text, limit, how, tiktoken)


@pytest.mark.local
@given(nasty, st.integers(1, 12), truncations)
@settings(deadline=None)
def test_cut_text_is_within_its_limit_by_a_model(
    smollm: Tokenizer, text: str, limit: int, how: Truncation
) -> None:
    check_cut(text, limit, how, smollm)


@pytest.mark.local
def test_a_model_has_no_control_token_in_a_cleaned_text(smollm: tokens.Pretrained) -> None:
    own = smollm._tokenizer.get_added_vocab()
    raw = "".join(own)
    assert set(own.values()) == set(smollm._tokenizer(raw)["input_ids"])
    assert not set(own.values()) & set(smollm._tokenizer(clean(raw))["input_ids"])


def check_nothing_is_wasted(text: str, tokenizer: Tokenizer) -> None:
    for limit in range(1, tokenizer.count(text)):
        for how in ("head", "tail"):
            shown, _ = shorten(text, Limits(None, limit, how), tokenizer)
            # A character may be up to four tokens.
            assert tokenizer.count(shown) > limit - 4


PROSE = "The moon pulls the oceans; “tides” rise – falling 12.5 hours later. Ебб 🙂 flows. " * 2


def test_nothing_is_wasted_by_an_estimate() -> None:
    check_nothing_is_wasted(PROSE, tokens.Estimate())


def test_nothing_is_wasted_by_tiktoken(tiktoken: Tokenizer) -> None:
    check_nothing_is_wasted(PROSE, tiktoken)


@pytest.mark.local
def test_nothing_is_wasted_by_a_model(smollm: Tokenizer) -> None:
    check_nothing_is_wasted(PROSE, smollm)


@pytest.mark.local
def test_a_model_counts_its_chat_as_it_reads_it(smollm: tokens.Pretrained) -> None:
    request = PromptSet().render(window(["a", "b"]))
    turns = [{"role": m.role, "content": m.content} for m in request.messages]
    ids = smollm._tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert prompt_tokens(request, smollm) == len(ids)
    assert smollm.context == 8192


@pytest.mark.parametrize(
    "wrong", [{"words": 0}, {"tokens": 0}, {"tokens": -1}, {"truncation": "left"}]
)
def test_a_limit_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Limits(**wrong)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 300))
def test_the_level_is_the_largest_that_fits(lengths: list[int], room: int) -> None:
    most = level(lengths, room)
    assert sum(min(length, most) for length in lengths) <= room or most == 0
    if most < max(lengths):
        assert sum(min(length, most + 1) for length in lengths) > room


QUERY = Query("q7", "how do tides work")
LONG = "moon pulls the sea " * 60


def window(texts: Sequence[str]) -> Order:
    return Order(QUERY, tuple(Document(str(i), text) for i, text in enumerate(texts)))


def shown_in(request: Request) -> list[str]:
    return re.findall(r"^\[\d+\] (.*)$", request.messages[-1].content, re.M)


def fits(request: Request, tokenizer: Tokenizer) -> bool:
    assert tokenizer.context is not None
    return prompt_tokens(request, tokenizer) + reply_tokens(request) <= tokenizer.context


def test_a_window_that_is_too_long_is_cut_evenly_and_counted() -> None:
    item = window([LONG, "short", LONG, LONG + LONG])
    tokenizer = tokens.Estimate(600)
    whole = PromptSet().render(item)
    assert (whole.cut, fits(whole, tokenizer)) == (1, False)
    request = PromptSet(tokenizer=tokenizer).render(item)
    assert fits(request, tokenizer)
    assert request.cut == 3
    lengths = [tokenizer.count(text) for text in shown_in(request)]
    assert lengths[1] == tokenizer.count("short")
    assert len({lengths[i] for i in (0, 2, 3)}) == 1
    # What is left free is less than another token for each.
    used = prompt_tokens(request, tokenizer) + reply_tokens(request)
    assert used > 600 - 2 * 4
    assert request.key("m") != whole.key("m")


def test_a_window_that_fits_is_left_alone() -> None:
    item = window(["the moon", "the sea"])
    for context in (None, 500, 1 << 20):
        assert PromptSet(tokenizer=tokens.Estimate(context)).render(item) == (
            PromptSet().render(item)
        )


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_what_is_kept_holds_where_a_prompt_is_made_to_fit(how: Truncation) -> None:
    prompts = PromptSet(tokenizer=tokens.Estimate(600), truncation=how)
    first, *_ = shown_in(prompts.render(window(["begin " + LONG + "end"] * 3)))
    assert first.startswith("begin") == (how != "tail")
    assert first.endswith("end") == (how != "head")
    assert first.count(GAP) == (how == "middle")


def test_a_prompt_that_cannot_fit_says_why_and_what_to_do() -> None:
    item = window([LONG] * 20)
    with pytest.raises(TooLong, match="'q7'") as caught:
        PromptSet(tokenizer=tokens.Estimate(700)).render(item)
    said = str(caught.value)
    whole = prompt_tokens(PromptSet().render(item), tokens.Estimate())
    assert f"{whole} tokens" in said
    assert "takes 700 (estimate" in said
    assert "--passage-tokens" in said
    # Whoever wants shorter passages says so.
    request = PromptSet(tokenizer=tokens.Estimate(700), passage_tokens=LEAST - 16).render(item)
    assert fits(request, tokens.Estimate(700))
    with pytest.raises(TooLong, match="hyde"):
        PromptSet(tokenizer=tokens.Estimate(100)).render(Write("hyde", (("query", LONG),)))


ONE = (Document("d", LONG),)
ASKS: list[Ask[Any]] = [
    Order(QUERY, ONE),
    Pick(QUERY, ONE),
    Pick(QUERY, ONE, by="labels"),
    Attend(QUERY, ONE),
    Grade(QUERY, ONE[0]),
    Grade(QUERY, ONE[0], ("2", "1", "0")),
    Likelihood(QUERY, ONE[0]),
]


@pytest.mark.parametrize("item", ASKS, ids=lambda item: type(item).__name__)
def test_every_kind_of_ask_is_made_to_fit(item: Ask[Any]) -> None:
    tokenizer = tokens.Estimate(200)
    request = PromptSet(tokenizer=tokenizer).render(item)
    assert fits(request, tokenizer)
    assert request.cut == 1


def test_pairs_and_texts_to_embed_are_left_to_their_models() -> None:
    tokenizer = tokens.Estimate(20)
    pair = PromptSet(tokenizer=tokenizer, pairs=True).render(Grade(QUERY, ONE[0]))
    assert (pair.want, pair.cut) == ("pair", 0)
    assert PromptSet(tokenizer=tokenizer).render(Embed((LONG,))).texts == (LONG,)


@given(st.lists(nasty, min_size=1, max_size=4), st.integers(150, 400))
def test_a_rendered_prompt_fits_or_is_refused(texts: list[str], context: int) -> None:
    tokenizer = tokens.Estimate(context)
    try:
        request = PromptSet(tokenizer=tokenizer).render(window(texts))
    except TooLong:
        return
    assert fits(request, tokenizer)


@given(nasty, st.integers(1, 8))
def test_limits_in_tokens_hold_for_what_is_shown(text: str, limit: int) -> None:
    tokenizer = tokens.Estimate()
    prompts = PromptSet(passage_tokens=limit, tokenizer=tokenizer)
    request = prompts.render(window([text, f"[{limit}] {text}"]))
    assert all(tokenizer.count(shown) <= limit for shown in shown_in(request))


def test_limits_that_are_given_take_the_place_of_a_templates() -> None:
    item = replace(window([LONG * 3, "b"]))
    tokenizer = tokens.Estimate()
    words = len(shown_in(PromptSet(passage_tokens=10_000, tokenizer=tokenizer).render(item))[0])
    assert words == len((LONG * 3).strip())
    both = PromptSet(passage_words=2, passage_tokens=100, tokenizer=tokenizer).render(item)
    assert shown_in(both)[0] == "moon pulls"
    with pytest.raises(SpecError, match="needs a tokenizer"):
        PromptSet(passage_tokens=10).render(item)
