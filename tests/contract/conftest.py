"""Every backbone with a tiny YAML, for all contracts of backbones."""

import pytest
from backbone_twins import TINY, build

from backbones.base import VideoBackbone


@pytest.fixture(scope="module", params=TINY, ids=lambda file: file.stem)
def backbone(request: pytest.FixtureRequest) -> VideoBackbone:
    return build(request.param)
