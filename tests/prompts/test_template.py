"""Templates: those that are shipped load and fill, broken ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrank.errors import InputError, SpecError
from llmrank.prompts import load, names
from llmrank.prompts.render import DEFAULTS, KINDS, SCALE
from llmrank.prompts.template import PLACEHOLDERS, Passage

ORDER = 'ask = "order"\ndescription = "d"\ntext = "{{ query }} {{ passages | length }}"\n'
GRADE = """
ask = "grade"
description = "d"
text = "{{ query }} {{ passage }}"
[labels]
yes = ["Yes"]
no = ["No"]
"""
LIKELIHOOD = """
ask = "likelihood"
description = "d"
text = "{{ passage }}"
target = " {{ query }}"
"""
WRITE = 'ask = "write"\ndescription = "d"\ninputs = ["query"]\ntext = "{{ query }}"\n'
VALUES = {
    "query": "q",
    "passage": "p",
    "passages": [Passage(1, "p")],
    "labels": ("2", "1", "0"),
    "n": 1,
    "document": "p",
    "examples": [("p", "q")],
}


def put(folder: Path, content: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", names())
def test_a_shipped_template_loads_and_fills(name: str) -> None:
    template = load(name)
    texts, target = template.fill({**dict.fromkeys(template.inputs, "text"), **VALUES})
    assert template.name == name
    assert template.description
    assert template.source
    assert len(template.sha256) == 64
    assert all(text and text == text.strip("\n") for text in texts)
    assert "{{" not in "".join([*texts, target])
    assert bool(target) == (template.ask == "likelihood")


def test_there_is_a_template_for_every_default() -> None:
    assert {*DEFAULTS.values(), SCALE} <= set(names())
    assert {load(name).ask for name in names()} == set(KINDS.values())
    assert all(load(name).ask == kind for kind, name in DEFAULTS.items())


@pytest.mark.parametrize("content", [ORDER, GRADE, LIKELIHOOD, WRITE])
def test_the_templates_that_the_broken_ones_are_made_of_are_good(
    content: str, tmp_path: Path
) -> None:
    assert load(put(tmp_path, content)).name == "mine"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ORDER.replace("{{ query }}", "{{ qery }}"), "qery"),
        (ORDER.replace("{{ query }}", ""), "uses exactly"),
        (ORDER.replace("passages | length", "passage"), "uses exactly"),
        (GRADE.replace("{{ query }}", "{{ query }} {{ passages }}"), "uses exactly"),
        (WRITE.replace('["query"]', '["query", "topic"]'), "uses exactly"),
        (ORDER.replace('"order"', '"rank"'), "`ask`"),
        (ORDER.replace("ask", "kind"), "`ask`"),
        (ORDER.replace('description = "d"', ""), "`description`"),
        (ORDER.replace('text = "{{ query }}', '[[messages]]\ntext = "{{ query }}'), "role"),
        (ORDER + '[[messages]]\nrole = "user"\ntext = "{{ query }}"', "either"),
        ('ask = "order"\ndescription = "d"\n', "either"),
        (ORDER + "target = '{{ query }}'", "`target`"),
        (LIKELIHOOD.replace("target", "source"), "`target`"),
        (LIKELIHOOD.replace("{{ passage }}", "{{ passage }} {{ query }}"), "gives it away"),
        (LIKELIHOOD.replace(" {{ query }}", "{{ passage }} {{ query }}"), "query alone"),
        (GRADE.split("[labels]")[0], "`labels`"),
        (ORDER + "[labels]\na = ['A']\nb = ['B']", "`labels`"),
        (GRADE.replace('no = ["No"]', ""), "two labels"),
        (GRADE.replace('"No"', '"yes"'), "share the form"),
        (GRADE.replace('"No"', '" "'), "no text"),
        (GRADE.replace('["No"]', "[]"), "no text"),
        (WRITE.replace('inputs = ["query"]', ""), "`inputs`"),
        (ORDER + "[params]\ntemperatur = 0.5", "params.temperatur"),
        (ORDER + "[params]\ntemperature = -1", "params.temperature"),
        (ORDER + "passage_words = 0", "passage_words"),
        (ORDER + "colour = 'red'", "`colour`"),
        (ORDER + "name = 'other'", "`name`"),
        (ORDER + "sha256 = 'abc'", "`sha256`"),
        (ORDER.replace("{{ query }}", "{{ query"), "not a valid template"),
        (ORDER.replace("{{ query }}", "{% for p in query %}"), "not a valid template"),
        (WRITE.replace("{{ query }}", "{{ query | nosuch }}"), "nosuch"),
        (ORDER.replace("{{ query }}", "{{ query.nosuch }}"), "nosuch"),
        (ORDER.replace("{{ query }}", "{% include query %}"), "loader"),
        (ORDER.replace("{{ query }}", "{{ query }}{{ 1 // 0 }}"), "zero"),
        (ORDER.replace("{{ query }}", "{{ query }}{{ range(10000000) | list }}"), "Range"),
        ("ask = order", "cannot read"),
        ("this is no TOML", "cannot read"),
        (b"ask = \"order\"\ndescription = '\xe9t\xe9'", "cannot read"),
        ('[[messages]]\nrole = "system"\ntext = "{{ query }}{{ passages }}"\n', "`ask`"),
        (
            'ask = "order"\ndescription = "d"\n[[messages]]\nrole = "system"\n'
            'text = "{{ query }} {{ passages }}"\n',
            "role `user`",
        ),
    ],
)
def test_a_broken_template_is_refused_with_its_file_named(
    content: str | bytes, says: str, tmp_path: Path
) -> None:
    path = put(tmp_path, content)
    with pytest.raises(InputError, match=r"mine\.toml") as caught:
        load(path)
    assert says in str(caught.value)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "reach",
    [
        "{{ query.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ query['__class__'] }}",
        "{{ query | attr('__class__') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ '{0.__class__}'.format(query) }}",
        "{{ passages[0].__str__.__globals__ }}",
        "{{ passages[0].__init__ }}",
        "{% set x = [].append(1) %}{{ [1].append(2) }}",
    ],
)
def test_a_template_cannot_reach_into_python(reach: str, tmp_path: Path) -> None:
    path = put(tmp_path, ORDER.replace("{{ query }}", "{{ query }}" + reach))
    with pytest.raises(InputError, match=r"mine\.toml"):
        load(path)


def test_a_write_template_that_reaches_into_python_fails_before_it_is_sent(tmp_path: Path) -> None:
    template = load(put(tmp_path, WRITE.replace("{{ query }}", "{{ query.__class__.__mro__ }}")))
    with pytest.raises(InputError, match="'mine' cannot be filled"):
        template.fill({"query": "q"})


def test_missing_files_and_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="yesno"):
        load("yes-no")
    with pytest.raises(InputError, match=r"gone\.toml"):
        load(tmp_path / "gone.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match=r"folder\.toml"):
        load(tmp_path / "folder.toml")


def test_the_hash_is_of_the_file_as_it_stands(tmp_path: Path) -> None:
    first = load(put(tmp_path, ORDER)).sha256
    assert first == load(put(tmp_path, ORDER)).sha256
    assert first != load(put(tmp_path, ORDER + "# changed")).sha256


def test_every_kind_but_write_has_fixed_placeholders() -> None:
    assert set(PLACEHOLDERS) == set(KINDS.values()) - {"write"}


def test_a_template_may_show_the_number_to_pick_and_the_labels_of_a_grade(tmp_path: Path) -> None:
    pick = ORDER.replace('"order"', '"pick"')
    assert load(put(tmp_path, pick)).ask == "pick"
    assert load(put(tmp_path, pick.replace("{{ query }}", "{{ query }}{{ n }}"))).ask == "pick"
    shown = GRADE.split("[labels]")[0].replace("{{ query }}", "{{ query }}{{ labels | first }}")
    assert not load(put(tmp_path, shown)).labels
    with pytest.raises(InputError, match="uses exactly"):
        load(put(tmp_path, ORDER.replace("{{ query }}", "{{ query }}{{ n }}")))
