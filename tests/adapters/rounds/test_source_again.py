"""A round reads the source set as the configuration means it, never a set of another meaning."""

import numpy as np
import pytest

from adapters.rounds.inputs import labelled_source
from storage.errors import SourceRefused
from storage.source.labelled_import import import_labelled
from tests.adapters.conftest import TrainingState


def test_a_set_that_was_read_with_another_meaning_is_imported_again(training_state: TrainingState) -> None:
    training_state.draw_source(3)
    training_state.layout.create()
    before = import_labelled(training_state.settings(), training_state.layout).labels.read(0)
    assert (labelled_source(training_state.settings(), training_state.layout).labels.read(0) == before).all()
    turned = training_state.settings(source={"label_map": {0: "road", 1: "sky"}})
    now = labelled_source(turned, training_state.layout)
    assert now is not None and np.array_equal(now.labels.read(0), np.array([1, 0, 2])[before])
    for path in (training_state.folder / "source/labels").iterdir():
        path.unlink()
    assert labelled_source(turned, training_state.layout) is not None, "the files are not needed any more"
    with pytest.raises(SourceRefused, match=r"no label 00\.png"):
        labelled_source(training_state.settings(), training_state.layout)
