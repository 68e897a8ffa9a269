"""The shipped model, loaded once for the tests of decoding."""

from __future__ import annotations

import pytest

from t4s_helpers.model.backbones import load_backbone


@pytest.fixture(scope="session")
def shipped():
    return load_backbone("embedded", adapter="scenes")
