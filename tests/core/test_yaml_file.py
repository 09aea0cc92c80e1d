"""Configuration files: strict YAML with places, interpolation, conf.d, and errors that help."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, SecretStr, field_validator, model_validator

from ndagent.core import interpolation, yaml_file
from ndagent.core.settings import ByteSize, ConfigPath, Duration, SettingError, Settings
from ndagent.core.validation import validate
from ndagent.core.yaml_file import ConfigError, Document, load_yaml, plain_value

Load = Callable[..., Document]


class Item(Settings):
    """An item of a list."""

    name: str


class Section(Settings):
    """A section."""

    mode: Literal["fast", "safe", "1.2"] = "fast"
    count: int = Field(default=1, ge=1)
    flag: bool = False
    path: ConfigPath | None = None


class Model(Settings):
    """One of everything that goes wrong."""

    name: str = "x"
    secret: SecretStr | None = None
    pin: str = ""
    size: ByteSize = 1
    wait: Duration = 1.0
    limit: int | None = None
    section: Section = Section()
    items: tuple[Item, ...] = ()
    words: dict[str, str] = Field(default={})

    @field_validator("pin")
    @classmethod
    def _pin(cls, pin: str) -> str:
        if pin and not pin.isdigit():
            raise ValueError(f"the pin {pin} has letters")
        return pin

    @model_validator(mode="after")
    def _items_once(self) -> "Model":
        names = [item.name for item in self.items]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise SettingError(("items", index, "name"), f"{name} is here twice")
        return self


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write the main file (and fragments), load it."""

    def write_and_load(text: str, env: dict[str, str] | None = None, **fragments: str) -> Document:
        (tmp_path / "main.yaml").write_text(text, encoding="utf-8")
        for name, content in fragments.items():
            (tmp_path / "conf.d").mkdir(exist_ok=True)
            (tmp_path / "conf.d" / f"{name}.yaml").write_text(content, encoding="utf-8")
        return load_yaml(tmp_path / "main.yaml", env or {})

    return write_and_load


def faults(action: Callable[[], object], base: Path) -> list[str]:
    """The error's lines, without the temporary directory."""
    with pytest.raises(ConfigError) as caught:
        action()
    return [line.removeprefix(f"{base}/") for line in str(caught.value).splitlines()]


# -- what a value means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("0", 0), ("-7", -7), ("+7", 7), ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("-1.5E-2", -0.015),
    ],
)  # fmt: skip
def test_plain_scalars_are_booleans_numbers_and_null(text: str, value: object) -> None:
    """The YAML 1.2 core schema, as people expect it."""
    assert plain_value(text) == value
    assert type(plain_value(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "yes", "no", "on", "off", "y", "n", "22:22", "1:30:00", "0640", "007", "0o640", "0x1F", "0b1", "1_000",
        "2026-01-01",
        ".inf", "-.inf", ".nan", "1e999", "1.2.3.4", "e5", ".", "+", "-", "1" * 19, "1e", "\u0661", "TRue", "nULL",
    ],
)  # fmt: skip
def test_yaml_1_1_surprises_stay_text(text: str) -> None:
    """Norway, times in base 60, octal modes, dates: nothing changes under the user's hands."""
    assert plain_value(text) == text


@given(st.text(max_size=30))
def test_any_plain_text_becomes_a_value(text: str) -> None:
    """Never an exception, never infinity."""
    value = plain_value(text)
    assert value is None or isinstance(value, bool | int | float | str)
    assert value not in (float("inf"), float("-inf"))


def test_quoted_scalars_are_text(load: Load) -> None:
    """Also with the one tag that is allowed."""
    assert load("a: '1'\nb: \"true\"\nc: !!str 1\nd: |\n  1\n").data == {"a": "1", "b": "true", "c": "1", "d": "1\n"}


def test_keys_are_always_text(load: Load) -> None:
    """A key that looks like a number or a boolean is still a name."""
    assert load("22: a\ntrue: b\n~: c\n").data == {"22": "a", "true": "b", "~": "c"}


def test_an_empty_file_says_nothing(load: Load) -> None:
    """Everything commented out is a valid state of a file."""
    assert load("# nothing\n").data == {}


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    """Notepad exists."""
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    document = load_yaml(tmp_path / "a.yaml", {})
    assert document.data == {"a": 1, "b": "x"}
    assert document.places[("b",)][1][1:] == (2, 4)


# -- anchors and merges ----------------------------------------------------------------------------------------------


def test_anchors_and_merges_work(load: Load) -> None:
    """A mapping's own keys win, whichever stands first; of several sources the earlier wins."""
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  x: 3\n  <<: [*a, *b]\nd: *a\ne: {'<<': 5}\n"
    data = load(text).data
    assert data["c"] == {"x": 3, "y": 1, "z": 2}
    assert data["d"] == {"x": 1, "y": 1}
    assert data["e"] == {"<<": 5}


def test_a_merge_of_something_else_is_a_fault(load: Load, tmp_path: Path) -> None:
    """Not a mapping: nothing to merge."""
    assert faults(lambda: validate(Model, load("section:\n  <<: 5\n")), tmp_path) == [
        "main.yaml:2:3: section.<<: should name a mapping, or a list of mappings"
    ]


@pytest.mark.parametrize("text", ["a: *nowhere\n", "a: &a [*a]\n"])
def test_an_alias_needs_a_finished_anchor(load: Load, tmp_path: Path, text: str) -> None:
    """No dangling and no endless structures."""
    assert "stands for nothing" in faults(lambda: load(text), tmp_path)[0]


def test_an_alias_bomb_is_refused_while_it_is_small(load: Load, tmp_path: Path) -> None:
    """A billion laughs cost nothing: sizes are counted, not built."""
    lines = ["a0: &a0 [" + ",".join("x" * 10) + "]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "values once aliases are expanded" in faults(lambda: load("\n".join(lines)), tmp_path)[0]


def test_a_merge_bomb_is_refused(load: Load, tmp_path: Path) -> None:
    """The same with `<<`."""
    wide = "base: &b {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}\n"
    text = wide + "".join(f"m{n}: {{<<: *b}}\n" for n in range(100))
    assert "values once aliases are expanded" in faults(lambda: load(text), tmp_path)[0]


def test_depth_is_bounded_also_through_aliases(load: Load, tmp_path: Path) -> None:
    """Exactly at the limit passes, one more does not; ten thousand brackets are not a crash."""
    limit = yaml_file.MAX_DEPTH
    load("a: " + "[" * (limit - 1) + "]" * (limit - 1))
    assert "nested deeper" in faults(lambda: load("a: " + "[" * (limit + 1) + "]" * (limit + 1)), tmp_path)[0]
    # The parser of PyYAML 6.0.4 has a limit of its own, which is reached first.
    assert re.search("nested deeper|nesting depth", faults(lambda: load("a: " + "[" * 10_000), tmp_path)[0])
    chain = "".join(f"a{n}: &a{n} [[*a{n - 1}]]\n" for n in range(1, limit))
    assert "aliases are expanded" in faults(lambda: load("a0: &a0 [1]\n" + chain), tmp_path)[0]


# -- files that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", "is not YAML: while parsing a flow sequence"),
        (b"a: 1\n\tb: 2\n", "indent with spaces, not with tabs"),
        (b"a: {b: ${C}}\n", 'write "${\u2026}" with quotes'),
        (b"a: 1\nb: \xff\n", "a.yaml:2:4: is not UTF-8 from here on"),
        (b"a: 1\nb: x\x00y\n", r"a.yaml:2:5: holds the control character '\x00'"),
        (b"- a\n", "should hold `key: value` lines at the top"),
        (b"a: 1\n---\nb: 2\n", "a.yaml:2:1: a second document"),
        (b"[a]: 1\n", "a.yaml:1:1: a key must be plain text"),
        (b"a: 'x\n", "is not YAML"),
        (b"%YAML 9.9\n---\na: 1\n", "is not YAML"),
    ],
)
def test_what_is_not_our_yaml_is_said_with_its_place(tmp_path: Path, content: bytes, expected: str) -> None:
    """Line, column and, for what people often do, the remedy."""
    (tmp_path / "a.yaml").write_bytes(content)
    (line,) = faults(lambda: load_yaml(tmp_path / "a.yaml", {}), tmp_path)
    assert expected in line
    assert line.startswith("a.yaml:")


@given(content=st.binary(max_size=200) | st.text("{}[]:,-&*!|>'\"%@`#?<$ \n\tab10", max_size=80).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_is_a_document_or_our_error(tmp_path: Path, content: bytes) -> None:
    """Nothing else comes out, whatever goes in."""
    (tmp_path / "a.yaml").write_bytes(content)
    with contextlib.suppress(ConfigError):
        load_yaml(tmp_path / "a.yaml", {})


def test_missing_unreadable_and_oversized_files_are_named(tmp_path: Path) -> None:
    """Each is one line, none is a traceback; exactly the limit passes."""
    assert faults(lambda: load_yaml(tmp_path / "no.yaml", {}), tmp_path) == [
        "no.yaml:1:1: cannot be read: No such file or directory"
    ]
    (tmp_path / "dir").mkdir()
    assert faults(lambda: load_yaml(tmp_path / "dir", {}), tmp_path) == ["dir:1:1: is not a file"]
    os.mkfifo(tmp_path / "fifo")
    assert faults(lambda: load_yaml(tmp_path / "fifo", {}), tmp_path) == ["fifo:1:1: is not a file"]
    big = tmp_path / "big.yaml"
    big.write_bytes(b"a: 1\n".ljust(yaml_file.MAX_FILE_BYTES, b"\n"))
    load_yaml(big, {})
    big.write_bytes(b"a: 1\n".ljust(yaml_file.MAX_FILE_BYTES + 1, b"\n"))
    assert "is larger than" in faults(lambda: load_yaml(big, {}), tmp_path)[0]


# -- interpolation ---------------------------------------------------------------------------------------------------


def test_variables_defaults_files_and_dollars(load: Load, tmp_path: Path) -> None:
    """All forms, in plain and quoted scalars; what comes out is not looked at again."""
    (tmp_path / "token").write_text("s3cret ${A}\n\n", encoding="utf-8")
    text = (
        "a: ${A}\nb: 'x${A}y${B:-d}'\nc: ${EMPTY:-d}\nd: ${EMPTY}\ne: ${file:token}\nf: $${A} $$ $x cost$\n"
        "g: \"${file:-z}\"\nh: ${UNSET:-}\ni: ['${A}']\n"
    )
    data = load(text, {"A": "${B}", "EMPTY": ""}).data
    assert data == {
        "a": "${B}", "b": "x${B}yd", "c": "d", "d": "", "e": "s3cret ${A}\n", "f": "${A} $ $x cost$", "g": "z", "h": "",
        "i": ["${B}"],
    }  # fmt: skip


def test_text_from_outside_takes_the_type_its_key_wants(load: Load) -> None:
    """A numeric password stays text, a numeric limit becomes a number; nothing is guessed from the look of it."""
    text = "pin: ${N}\nsecret: ${N}\nlimit: ${N}\nsize: ${S}\nsection: {count: '${N}', flag: '${F}'}\n"
    model = validate(Model, load(text, {"N": "123", "S": "4KiB", "F": "true"}))
    assert (model.pin, model.limit, model.size) == ("123", 123, 4096)
    assert (model.section.count, model.section.flag) == (123, True)
    assert model.secret is not None
    assert model.secret.get_secret_value() == "123"


def test_an_empty_variable_is_null_where_null_is_meant(load: Load) -> None:
    """`${LIMIT:-}` for an optional number."""
    assert validate(Model, load("limit: ${LIMIT:-}")).limit is None


def test_what_cannot_be_interpolated_is_said_with_its_place(load: Load, tmp_path: Path) -> None:
    """Every one of them, together with the model's own faults, and without any that only follow from them."""
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "big").write_bytes(b"x" * (interpolation.MAX_FILE_BYTES + 1))
    text = (
        "name: ${NOPE}\npin: ${file:gone}\nsecret: ${oops\nsize: ${file:.}\nlimit: ${file:latin}\n"
        "section: {path: '${file:big}', mood: 1}\n"
    )
    assert faults(lambda: validate(Model, load(text)), tmp_path) == [
        "main.yaml:1:7: name: environment variable NOPE is not set; set it, or write ${NOPE:-default}",
        f"main.yaml:2:6: pin: {tmp_path}/gone does not exist",
        "main.yaml:3:9: secret: '${' starts ${VAR}, ${VAR:-default} or ${file:PATH}; write $${ for a plain '${'",
        f"main.yaml:4:7: size: {tmp_path} is not a file",
        f"main.yaml:5:8: limit: {tmp_path}/latin is not UTF-8 text, or not a path",
        f"main.yaml:6:17: section.path: {tmp_path}/big is larger than {interpolation.MAX_FILE_BYTES} bytes",
        "main.yaml:6:32: section.mood: unknown key; did you mean 'mode'?",
    ]


def test_one_value_cannot_gather_endless_text(load: Load, tmp_path: Path) -> None:
    """A thousand times the same file in one scalar."""
    (tmp_path / "f").write_text("x" * 60_000, encoding="utf-8")
    assert "becomes longer than" in faults(lambda: validate(Model, load("name: " + "${file:f}" * 1000)), tmp_path)[0]


@pytest.mark.parametrize(
    "text",
    [
        "size: ${T}", "size: 1${T}", "wait: '${T}'", "limit: ${T}", "pin: ${T}", "pin: ${file:token}",
        "pin: ${U:-hunter2!!}",
        "section: {mode: '${T}'}", "section: '${T}'", "items: ['${T}']", "items: [{name: '${T}'}, {name: '${T}'}]",
    ],
)  # fmt: skip
def test_no_message_shows_what_came_from_outside(load: Load, tmp_path: Path, text: str) -> None:
    """Not in the error, not in its chain, not in the document's repr."""
    (tmp_path / "token").write_text("hunter2!!\n", encoding="utf-8")
    document = load(text, {"T": "hunter2!!"})
    with pytest.raises(ConfigError) as caught:
        validate(Model, document)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter" not in f"{error!s}{error!r}"
        error = error.__cause__ or error.__context__
    assert "hunter" not in repr(document)
    assert "${" in str(caught.value) or "should be" in str(caught.value)


def test_a_short_secret_is_hidden_too(load: Load, tmp_path: Path) -> None:
    """Three letters are enough to keep to oneself."""
    (line,) = faults(lambda: validate(Model, load("pin: ${T}", {"T": "abc"})), tmp_path)
    assert "abc" not in line
    assert "${T}" in line


# -- conf.d ----------------------------------------------------------------------------------------------------------


def test_fragments_are_merged_in_name_order(load: Load) -> None:
    """Mappings deep, everything else replaced; an empty key adds nothing, an explicit null does."""
    data = load(
        "words: {a: main, b: main, c: main}\nitems: [{name: main}]\nsection: {count: 1}\nlimit: 5\n",
        {},
        **{"20": "words: {b: twenty}\nitems: [{name: twenty}]\n"},
        **{"10": "words: {a: ten, b: ten}\nsection:\nlimit: null\n"},
    ).data
    assert data == {
        "words": {"a": "ten", "b": "twenty", "c": "main"},
        "items": [{"name": "twenty"}],
        "section": {"count": 1},
        "limit": None,
    }


def test_faults_name_the_file_they_stand_in(load: Load, tmp_path: Path) -> None:
    """Main file first, then the fragments by name; syntax errors of several files together."""
    assert faults(lambda: validate(Model, load("limit: x\n", {}, **{"10": "\nsize: huge\n"})), tmp_path) == [
        "main.yaml:1:8: limit: should be a whole number, not 'x'",
        "conf.d/10.yaml:2:7: size: 'huge' is not a size; write bytes or a number with a unit, such as 64MiB or 20GB",
    ]
    assert len(faults(lambda: load("a: [\n", {}, **{"10": "b: {\n"}), tmp_path)) == 2


def test_paths_and_secret_files_belong_to_their_fragment(load: Load, tmp_path: Path) -> None:
    """Relative means relative to the file that says it."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "token").write_text("t", encoding="utf-8")
    model = validate(Model, load("name: x", {}, **{"10": "section: {path: p}\npin: ''\nname: ${file:token}\n"}))
    assert model.section.path == tmp_path / "conf.d" / "p"
    assert model.name == "t"


def test_a_fragment_with_the_wrong_ending_is_not_ignored_in_silence(load: Load, tmp_path: Path) -> None:
    """.yml is a fault; editors' and packagers' leftovers are not read."""
    (tmp_path / "conf.d").mkdir()
    for name in (".10.yaml.swp", ".hidden.yaml", "10.yaml~", "10.yaml.dpkg-old", "README"):
        (tmp_path / "conf.d" / name).write_text("nonsense: [", encoding="utf-8")
    assert load("name: x").faults == []
    (tmp_path / "conf.d" / "10.yml").write_text("name: y", encoding="utf-8")
    assert faults(lambda: validate(Model, load("name: x")), tmp_path) == [
        "conf.d/10.yml:1:1: is not read; rename it to end in .yaml"
    ]


def test_the_number_of_fragments_is_bounded(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the limit passes."""
    monkeypatch.setattr(yaml_file, "MAX_FILES", 2)
    assert load("name: x", {}, a="pin: '1'", b="pin: '2'").faults == []
    assert "more than 2 .yaml files" in str(load("name: x", {}, c="pin: '3'").faults[0])


# -- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nmae: x", "1:1: nmae: unknown key; did you mean 'name'?"),
        ("section: {zzz: 1}", "1:11: section.zzz: unknown key; known: count, flag, mode, path"),
        ("items: [{name: a, nam: b}]", "1:19: items[0].nam: unknown key; did you mean 'name'?"),
        ("items:\n  - name: a\n  - {}", "3:5: items[1].name: this key is required"),
        ("name: 5", '1:7: name: should be text; put it in "quotes"'),
        ("section:\n  mode: 1.2", '2:9: section.mode: should be text; write "1.2", with the quotes'),
        ("section: {mode: fats}", "1:17: section.mode: should be 'fast', 'safe' or '1.2'; did you mean 'fast'?"),
        ("section: {flag: yes}", "1:17: section.flag: should be true or false, not 'yes'"),
        ("section: {count: true}", "1:18: section.count: should be a whole number, not true"),
        ("section: {count: 1.5}", "1:18: section.count: should be a whole number, not 1.5"),
        ("section: {count: 0}", "1:18: section.count: should be greater than or equal to 1"),
        ("section: 5", "1:10: section: should be a mapping: `key: value` lines, not 5"),
        ("items: 5", "1:8: items: should be a list: [a, b], or lines that start with '- ', not 5"),
        ("wait: 5 parsec", "1:7: wait: '5 parsec' is not a duration"),
        ("name: a\nname: b", "2:1: name: is here twice; the first is on line 1"),
        ("items: [{name: a}, {name: a}]", "1:27: items[1].name: a is here twice"),
        ("name: !!int 5", "1:7: name: the tag tag:yaml.org,2002:int is not supported; remove it"),
        ("section: !x {count: 1}", "1:10: section: the tag !x is not supported; remove it"),
        ("words: {a: 1}", '1:12: words.a: should be text; put it in "quotes"'),
    ],
)  # fmt: skip
def test_messages_say_place_key_trouble_and_remedy(load: Load, tmp_path: Path, text: str, expected: str) -> None:
    """What a user reads at three in the morning."""
    lines = faults(lambda: validate(Model, load(text)), tmp_path)
    assert lines[0].startswith(f"main.yaml:{expected}")
    assert len(lines) == 1


def test_all_faults_come_at_once_and_in_order(load: Load, tmp_path: Path) -> None:
    """One run, one list."""
    text = "pin: xx\nname: 1\nsection: {count: 0, flag: 2}\nfoo: 1\nname: 2\n"
    places = [line.split(": ")[0] for line in faults(lambda: validate(Model, load(text)), tmp_path)]
    assert places == [f"main.yaml:{at}" for at in ("1:6", "2:7", "3:18", "3:27", "4:1", "5:1")]


def test_a_valid_document_becomes_the_model(load: Load) -> None:
    """The plain case."""
    model = validate(Model, load("name: a\nsection: {count: 3}\nitems:\n- name: b\n"))
    assert (model.name, model.section.count, model.items[0].name) == ("a", 3, "b")


def test_both_parsers_of_pyyaml_agree(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """libyaml is only faster: the same data and places come from the pure parser."""
    import yaml

    text = "a: &x [1, 'b', {c: d}]\ne: *x\nf: |\n  text\n'g': \"h\"\n"
    fast: Any = load(text)
    monkeypatch.setattr(yaml_file, "_Loader", yaml.SafeLoader)
    pure: Any = load(text)
    assert (fast.data, fast.places) == (pure.data, pure.places)
