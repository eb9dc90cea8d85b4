"""The operator key comes from a variable or a file, and one that no header could carry is a mistake to be told."""

import pytest

from serve_app.adapters.operator_key import FILE_VARIABLE, VARIABLE, read_operator_key
from serve_app.errors import ConfigError


def test_without_either_variable_there_is_no_key() -> None:
    assert read_operator_key({"OTHER": "x"}) is None


def test_the_variable_holds_the_key() -> None:
    assert read_operator_key({VARIABLE: "s3cret!"}) == b"s3cret!"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_holds_the_key_and_its_last_line_break_is_none_of_it(tmp_path, end) -> None:
    path = tmp_path / "key"
    path.write_bytes(f"s3cret!{end}".encode())
    assert read_operator_key({FILE_VARIABLE: str(path)}) == b"s3cret!"


@pytest.mark.parametrize("key", ["", " ", "\t\n", "two words", " s3cret", "s3cret ", "a\nb", "schlüssel", "x" * 1001])
def test_a_key_that_cannot_be_sent_is_a_configuration_error_that_does_not_repeat_it(tmp_path, key) -> None:
    path = tmp_path / "key"
    path.write_text(key)
    for environment in ({VARIABLE: key}, {FILE_VARIABLE: str(path)}):
        with pytest.raises(ConfigError, match="SWITCHYARD_OPERATOR_KEY") as refused:
            read_operator_key(environment)
        assert not key.strip() or key.strip() not in str(refused.value)


@pytest.mark.parametrize("name", ["", "key.txt", "/nonexistent/key", "/", "/bad\0name"])
def test_a_file_that_cannot_be_read_is_a_configuration_error(name) -> None:
    with pytest.raises(ConfigError, match=FILE_VARIABLE):
        read_operator_key({FILE_VARIABLE: name})


def test_both_at_once_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="both set"):
        read_operator_key({VARIABLE: "a", FILE_VARIABLE: "/b"})
