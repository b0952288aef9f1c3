"""What the engines' tests work on."""

import pytest

from infra.store import storage
from infra.store.artifacts import ArtifactRef
from tasks.augment import stage
from tasks.augment.settings import Augmentation
from tasks.seeds.stage import Sources
from tests.support.stages import augment_workspace, load


@pytest.fixture(scope="module")
def rows(services: object) -> ArtifactRef:
    """The demo's seeds as training rows."""
    storage.ensure_bucket()
    seeds = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=True)
    work = augment_workspace(seeds, Augmentation(enabled=False), "")
    return work.find() or stage.copy_seeds(work, seeds)
