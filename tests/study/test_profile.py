import pytest

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.study import load_profile
from nml_kit.study.profile import profile_names


def test_shipped_profiles_are_valid_and_ordered_by_size():
    profiles = {name: load_profile(name) for name in profile_names()}
    assert set(profiles) >= {"smoke", "demo", "small"}
    runs = {name: len(p.ratios) * len(p.seeds) * p.recipe.epochs for name, p in profiles.items()}
    assert runs["smoke"] < runs["demo"] < runs["small"]
    assert set(profiles["demo"].ratios) >= {0.0, 0.1, 0.3}
    assert len(profiles["small"].seeds) >= 5
    assert all(len(p.downstream.id) >= 5 and len(p.downstream.ood_tasks) >= 2 for p in profiles.values())


def test_unknown_profile_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Unknown profile 'dmeo': did you mean 'demo'"):
        load_profile("dmeo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratios: [0, 1.5]", r"ratios\.1.*expected a fraction from 0 to 1; 10 % is 0\.1.*input_value=1\.5"),
        ("speeds: [1]", "speeds"),
        ("ratios: [", "while parsing a flow node"),
        ("- 1", "expected the fields of a profile"),
    ],
)
def test_invalid_profile_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=rf"(?s)mine\.yaml.*{message}"):
        load_profile(str(path))


def test_a_profile_is_changed_within_its_checks():
    with pytest.raises(InvalidInputError, match=r"(?s)ratios\.1.*expected a fraction from 0 to 1.*input_value=30"):
        load_profile("demo").changed(ratios=[0, 30])
    assert load_profile("demo").changed(ratios=[0, 1]).ratios == (0.0, 1.0)
