"""Every backbone with a tiny YAML, and the one of docs/add_backbone.md, for all contracts of backbones."""

import pytest
from backbone_twins import CHECKED, build

from backbones.base import VideoBackbone


@pytest.fixture(scope="module", params=CHECKED, ids=lambda file: file.stem)
def backbone(request: pytest.FixtureRequest) -> VideoBackbone:
    return build(request.param)
