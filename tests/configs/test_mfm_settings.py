"""Settings of Masked Feature Modeling that cannot work are refused, with the field's name and what to do."""

import pytest
from pydantic import ValidationError

from configs.mfm import MfmSettings
from configs.settings import Settings
from tests.sections import section


@pytest.mark.parametrize(
    ("values", "field", "says"),
    [
        ({"dim": 130, "heads": 13}, "dim", "multiple of 4"),
        ({"dim": 100}, "heads", "must divide mfm.ablation.dim, which is 100"),
        ({"dim": 96, "heads": 36}, "heads", "must divide mfm.ablation.dim, which is 96"),
        ({"mask_ratio": 0.0, "reconstruction": "pixels"}, None, "mask_ratio 0 has none"),
        ({"detach_encoder": True, "freeze_decoder": True}, None, "nothing that serves"),
        ({"detach_encoder": True, "reconstruction": "teacher_feature"}, None, "nothing that serves"),
    ],
)
def test_what_cannot_work_is_refused(values, field, says) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        section(MfmSettings, **values)
    (error,) = caught.value.errors()
    assert error["loc"] == (("ablation", field) if field else ())


@pytest.mark.parametrize(
    ("values", "rebuilds", "classifies"),
    [
        ({}, True, True),
        ({"reconstruction": "pixels"}, True, False),
        ({"reconstruction": "student_feature", "freeze_decoder": True}, True, False),
        ({"reconstruction": "mask_only", "detach_encoder": True}, False, True),
        ({"mask_ratio": 0.0}, False, True),
    ],
)
def test_what_the_switches_need(values, rebuilds, classifies) -> None:
    settings = section(MfmSettings, **values)
    assert (settings.rebuilds, settings.ablation.classifies) == (rebuilds, classifies)


def test_source_images_are_needed_for_the_source_domain() -> None:
    base = {"classes": "demo", "watch": {"folder": "drop"}}
    source = {"images": "a", "labels": "b"}
    for domain in ("source", "both"):
        with pytest.raises(ValidationError, match=rf"mfm\.ablation\.domain: {domain} needs labelled source images"):
            Settings.model_validate({**base, "mfm": {"ablation": {"domain": domain}}})
        assert (
            Settings.model_validate(
                {**base, "source": source, "mfm": {"ablation": {"domain": domain}}}
            ).mfm.ablation.domain
            == domain
        )
        for unused in (
            {"mfm": {"enabled": False, "ablation": {"domain": domain}}},
            {"mfm": {"ablation": {"domain": domain}}, "recipe": {"name": "tent"}},
        ):
            assert Settings.model_validate({**base, **unused}).mfm.ablation.domain == domain
