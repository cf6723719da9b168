"""The text form: its meaning, its errors, and the way there and back."""

import pytest
from constrint_models import as_set, models
from hypothesis import HealthCheck, given, settings

from constrint import Model, ModelError, ParseError
from constrint.text import parse, print_model

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}

PUBLISHED = """
# the form published with FlashRNN: undeclared variables, lists, ^, | for or, no brackets
Tile == [16, 32, 64] ;
Tile * Blocks == Hidden ;
Hidden == 128 ;
Hidden % Tile == 0 ;
Tile ^ 2 + Blocks <= 1100 |
Blocks == 1 ;
Warps <= 2 ;
Warps == [2, 4] ;
"""


def test_the_published_form_keeps_its_meaning():
    found = as_set(parse(PUBLISHED).solutions())
    assert found == {
        tuple(sorted({"Tile": t, "Blocks": 128 // t, "Hidden": 128, "Warps": 2}.items()))
        for t in (16, 32)
    }


def test_brackets_are_honoured():
    assert parse("var a: 1..9; var b: 1..9; 2*(a + b) == 8;").count() == 3
    assert parse("var a: 1..9; var b: 1..9; 2*a + b == 8;").count() == 3
    assert {at["a"] for at in parse("var a: 0..9; a == 1 | (a > 3) & a < 6").solutions()} == {
        1,
        4,
        5,
    }


def test_every_operator_is_read():
    model = parse(
        'model "all"; var a: -4..4; var b: {1, 2, 3}; var c: 0..12 step 4;'
        '"first": a - b // 2 >= -3; a / b != 1; 2**b < 9 and not (c == 4 or c > 8);'
        "b divides c + 4; 1 <= b <= 2; c in {0, 8}; a > 0 implies b == 1;"
        "if(a > 0, a, b) <= 3; min(a, b) + max(a, b, c) - abs(a) >= 0; cdiv(c, 3) <= 3;"
        "all_different([a, b]); table([a, b], [(0, 1), (-1, 2), (2, 1)]); maximize a;"
    )
    assert model.name == "all" and model.rules[0].name == "first"
    assert model.solve() == {"a": 2, "b": 1, "c": 0} or model.solve()["c"] == 8
    assert as_set(parse(print_model(model)).solutions()) == as_set(model.solutions())


def test_lists_stand_for_any_of_their_values():
    assert [at["x"] for at in parse("var x: 1..12; x % [5, 4] == 0").solutions()] == [
        4,
        5,
        8,
        10,
        12,
    ]
    assert [at["x"] for at in parse("var x: 1..12; 3*[1, 4] == x").solutions()] == [3, 12]


@pytest.mark.parametrize(
    ("source", "place", "told"),
    [
        ("var x: 1..3;\nx + == 2;", "line 2, column 5", "found '=='"),
        ("var x: 1..3\nx == 2;", "line 2, column 1", "expected ';'"),
        ("x $ 2;", "line 1, column 3", r"'\$'"),
        ("var x: 1..3; x + 1;", "line 1, column 14", "is a number where a condition"),
        ("(a < 1) + 2 == 3;", "line 1, column 1", "is a condition"),
        ("var x: 1..3; var x: 1..4;", "line 1, column 14", "already a variable 'x'"),
        ("cdiv(a) == 1;", "line 1, column 5", "takes 2 numbers"),
        ("var x: 1..5 step 0;", "line 1, column 19", "step of 0"),
        ("(a == 1;", "line 1, column 8", r"expected '\)'"),
    ],
)
def test_errors_show_the_place(source, place, told):
    with pytest.raises(ParseError, match=told) as caught:
        parse(source)
    assert place in str(caught.value)
    line, caret = str(caught.value).splitlines()[-2:]
    assert caret.index("^") - 4 == caught.value.column - 1 <= len(line)


def test_what_has_no_text_is_refused():
    model = Model()
    model.int_var("a b", [1])
    with pytest.raises(ModelError, match="'a b'"):
        print_model(model)


@settings(max_examples=80, **QUIET)
@given(models())
def test_a_printed_model_is_the_same_model(model):
    text = print_model(model)
    again = parse(text)
    assert print_model(again) == text
    assert [str(rule) for rule in again.rules] == [str(rule) for rule in model.rules]
    assert {n: v.domain for n, v in again.variables.items()} == {
        n: v.domain for n, v in model.variables.items()
    }
    assert as_set(again.solutions()) == as_set(model.solutions())
