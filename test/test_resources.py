# SPDX-License-Identifier: Apache-2.0
"""What an error quotes, and files that anybody may have made: each is refused soon, by a short sentence."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import run

from netwarp_ros.classes import ClassSet
from netwarp_ros.recordings.image_messages import to_bgr
from netwarp_ros.resources import MAX_JSON, MAX_YAML, cut, parse_json, quote, read_yaml
from netwarp_ros.training.config import TrainingConfig

MOST_CHARACTERS = 500
RECIPE = "model: {host: h}\ndata: [{kind: street}]\n"


def bomb(first: str, level: Callable[[str], str]) -> str:
    """Return YAML with a line for each of nine letters; each line refers nine times to the one before it."""
    lines = [f"- &a {first}"]
    for before, letter in zip(string.ascii_lowercase, string.ascii_lowercase[1:9], strict=False):
        lines.append(f"- &{letter} {level(', '.join([f'*{before}'] * 9))}")
    return "\n".join(lines)


def refusal(call: Callable[[], object]) -> str:
    """Return the error of a call, which must be one short line."""
    with pytest.raises(ValueError, match="^.") as caught:
        call()
    assert len(str(caught.value)) < MOST_CHARACTERS and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_quote_is_the_repr_of_a_small_value() -> None:
    assert quote({"b": [1, "x"], "a": None}) == "{'b': [1, 'x'], 'a': None}"
    assert quote("a\nb\x1b") == r"'a\nb\x1b'"


def test_a_quote_of_a_large_value_is_short() -> None:
    nested: object = "x"
    for _ in range(50):
        nested = [nested] * 9  # its repr has 9^50 letters
    for value in (nested, "x" * 10**6, list(range(10**6)), {str(index): index for index in range(10**5)}, b"x" * 10**6):
        assert len(quote(value)) <= 205
    assert len(quote("x" * 100, 40)) <= 45


def test_a_long_text_is_cut_in_the_middle() -> None:
    assert cut("a  b\n\x1b[2Jc") == "a b [2Jc"
    assert cut("a" * 10**6 + "z" * 60, 100) == "a" * 75 + " ... " + "z" * 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("[x, x]", "[{}]".format), r" is \[\['x', 'x'\], .*, must be a mapping with "),
        (RECIPE + "output:\n" + bomb("[x, x]", "[{}]".format), r"output is \[\['x', 'x'\], .*, must be a valid string"),
        (bomb("{x: 1, y: 2}", "{{<<: [{}]}}".format), r"merge keys \(<<\) make more than 10000 keys"),
        ("[" * 10**4, " is nested too deeply"),
        ("{a: " * 10**4, " is nested too deeply"),
        ("seed: 1\nseed: 2", "the key 'seed' occurs twice in one mapping"),
        ("model: {host: a, host: b}", "the key 'host' occurs twice in one mapping"),
        ("x" * (MAX_YAML + 1), f"has more than {MAX_YAML} bytes"),
        ("seed: 0x" + "f" * 10**4, "has more than 64 bits"),
        ("seed: " + "9" * 10**4, "not valid YAML: Exceeds the limit"),
        ("seed: 2024-99-99", "not valid YAML: month must be in"),
        ("seed: !!timestamp x", "not valid YAML: "),
        ("seed: !!int ''", "not valid YAML: "),
        ("? " + "x" * 10**4 + "\n: 1", "has the unknown key xxx.*xxx: give model, data"),
    ],
)
def test_a_yaml_file_of_any_content_is_refused_by_a_short_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    error = refusal(lambda: read_yaml(TrainingConfig, tmp_path / "bad.yaml"))
    assert re.search(rf"bad\.yaml.*{message}", error), error


def test_what_a_message_says_of_itself_is_quoted_in_part() -> None:
    image = SimpleNamespace(width=1, height=1, step=1, encoding="x" * 10**7, data=b"")
    compressed = SimpleNamespace(format="\x1b[2J" * 10**6, data=b"data")
    for message, words in ((image, "encoding is 'xxx"), (compressed, "4 bytes of format '")):
        assert words in refusal(lambda message=message: to_bgr(message))


def test_the_command_line_prints_a_bounded_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 100_000 + "\x1b[2J\n.pth"
    assert run("convert", name, "--host", "pspnet50", "--classes", "camvid", "-o", "a.safetensors") == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"netwarp: .*x+ \.\.\. x+.*\[2J.*\n", line) and len(line) < 2100 and line.isascii()


def test_anchors_and_merge_keys_of_a_recipe_are_read(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "model: {host: h}\ndata:\n- &one {kind: street, seeds: 3}\n- {<<: *one, seeds: 5}\nvalidation: [*one]\n"
    )
    config = read_yaml(TrainingConfig, tmp_path / "two.yaml")
    assert [source.seeds for source in (*config.data, *config.validation)] == [3, 5, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * (MAX_JSON - 1), "the header is nested too deeply"),
        ('{"a":' * 50_000, "the header is nested too deeply"),
        (json.dumps("x" * MAX_JSON), f"the header has {MAX_JSON + 2} characters: at most {MAX_JSON} are read"),
        ('{"name": "a", "name": "b"}', "the header is not valid JSON: the key 'name' occurs twice in one mapping"),
        ('{"name": ' + "1" * 5000 + "}", "the header is not valid JSON: Exceeds the limit"),
        ('{"name": ' + "[" * 500 + "]" * 500 + "}", r"name is \[\[\[\[\.\.\.\]\]\]\], must be a valid string"),
        (json.dumps({"name": "a", "void": 255, "classes": [1] * 80_000}), "classes"),
    ],
)
def test_json_of_any_content_is_refused_by_a_short_sentence(text: str, message: str) -> None:
    assert re.search(message, refusal(lambda: parse_json(ClassSet, text, "the header")))
