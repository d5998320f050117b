import pytest

import lightning_merge


@pytest.mark.parametrize("name", lightning_merge.__all__)
def test_every_public_name_is_there_and_documented(name):
    found = getattr(lightning_merge, name)
    assert found.__name__ == name
    assert found.__module__.startswith("lightning_merge.")
    assert len(found.__doc__ or "") > 30


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="averge"):
        lightning_merge.averge  # noqa: B018
