"""KEY=VALUE pairs of the command line."""

from typing import Any

import pytest

from mmvim.cli.arguments import ToolParser, parse_value
from mmvim.errors import UsageError


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('/my data', '/my data'),
        ('"/my data, all of it"', '/my data, all of it'),
        ("['/my data', '/other data']", ['/my data', '/other data']),
        ('/my data,/other data', ['/my data', '/other data']),
        ("{'a':('b','c')}", {'a': ('b', 'c')}),
        ("{'a': {'b': [1, 2.5]}}", {'a': {'b': [1, 2.5]}}),
        ('{}', {}),
        ('f(a,b)', 'f(a,b)'),
        ('{}_{}', '{}_{}'),
        ('(old) and (new)', '(old) and (new)'),
        ('photo (1).jpg', 'photo (1).jpg'),
        ('a[1', 'a[1'),
        ('', ''),
        # As mmengine reads them.
        ('1', 1),
        ('1e-3', 0.001),
        ('true', True),
        ('None', None),
        ('1,2,3', [1, 2, 3]),
        ('[a, b]', ['a', 'b']),
        ('[(1,2),(x,4)]', [(1, 2), ('x', 4)]),
        ('(1,)', (1,)),
        ('[]', []),
        ('x=y', 'x=y'),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = ToolParser('').parse_args(['a.py', '--cfg-options', f'k.x={text}']).cfg_options
    assert found == {'k.x': value}
    assert type(found['k.x']) is type(value)
    assert parse_value(f' {text}') == value


def test_pairs_add_up() -> None:
    argv = ['a.py', '--cfg-options', 'a=1', 'b=2', '--cfg-options', 'a=3']
    assert ToolParser('').parse_args(argv).cfg_options == {'a': 3, 'b': 2}


@pytest.mark.parametrize(
    ('pair', 'says'),
    [
        ('c.py', 'c.py has no =; positional arguments go before'),
        ('a=[1,2', r'brackets of \[1,2 do not match'),
        ('a={b: 1}', r'\{b: 1\} is no dict of Python: quote its strings'),
        ('a=' + '[x,' * 5000 + ']' * 5000, 'recursion'),
    ],
)
def test_what_is_no_pair(pair: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ToolParser('').parse_args(['a.py', '--cfg-options', pair])
