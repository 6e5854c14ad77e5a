"""Forest plots show every effect once, marked by its verdict."""

import numpy as np
import pandas as pd
import pytest

from nml_kit.errors import InvalidInputError
from nml_kit.inference import judge_claims
from nml_kit.plots import claim_effects
from tests.inference.test_claims import DOWN, HUMP, simulate


@pytest.fixture(scope="module")
def verdicts():
    return judge_claims(*simulate(accuracy={("OOD", "LP"): DOWN, ("ID", "LP"): HUMP}, samples=300))


def test_every_effect_is_drawn_once_in_the_mark_of_its_verdict(verdicts):
    accuracy = verdicts[verdicts["claim"].isin(["C1", "C2", "C6"])]
    figure = claim_effects(accuracy, title="Noise and accuracy")
    drawn = sorted((trace.name, x) for trace in figure.data for x in trace.x)
    assert drawn == sorted(zip(accuracy["verdict"], accuracy["effect"], strict=True))
    reaches = np.concatenate([trace.x + trace.error_x.array for trace in figure.data])
    np.testing.assert_allclose(np.sort(reaches), np.sort(accuracy["high"]))
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(names) == sorted(set(accuracy["verdict"]))
    nulls = [shape.x0 for shape in figure.layout.shapes]
    assert sorted(nulls) == [-0.005] + [0.0] * (len(nulls) - 1)
    assert [note.text for note in figure.layout.annotations] == [
        f"{claim} · {contrast}" for claim, contrast in accuracy[["claim", "contrast"]].drop_duplicates().to_numpy()
    ]


def test_a_panel_is_named_after_its_claim_contrast_and_metric(verdicts):
    figure = claim_effects(verdicts[verdicts["claim"].isin(["C3", "C4"])], title="Spectra")
    assert [note.text for note in figure.layout.annotations] == [
        "C3 · LP: 5 % − 0 %, SVE", "C3 · LP: trend over ratios, SVE", "C4 · LP: trend over ratios, LSVR",
        "C4 · LP: rank correlation of LSVR and accuracy",
    ]  # fmt: skip
    assert [axis.ticktext for axis in figure.select_yaxes()] == [("ID · a", "ID · b")] * 2 + [
        ("OOD · c", "OOD · d")
    ] * 2


def test_texts_of_the_data_are_shown_as_text(verdicts):
    spoilt = verdicts[verdicts["claim"] == "C2"].assign(task="<b>bold</b>")
    figure = claim_effects(spoilt, title="a < b")
    assert figure.layout.title.text == "a &lt; b"
    assert all("&lt;b&gt;bold" in text for trace in figure.data for text in trace.text)
    assert all("&lt;b&gt;bold" in text for axis in figure.select_yaxes() for text in axis.ticktext)


def test_objectives_are_told_apart_and_missing_effects_explained(verdicts):
    both = pd.concat([verdicts, verdicts.assign(objective="contrastive")])
    figure = claim_effects(both[both["claim"] == "C3"], title="Spectra")
    labels = [label for axis in figure.select_yaxes() for label in axis.ticktext]
    assert "ID · a · contrastive" in labels
    assert "ID · a · supervised" in labels
    nothing = claim_effects(verdicts[verdicts["claim"] == "C7"], title="Contrastive")
    assert "C7: There are no contrastive results for C1." in nothing.layout.annotations[0].text
    with pytest.raises(InvalidInputError, match="missing: verdict"):
        claim_effects(verdicts.drop(columns="verdict"), title="")
