"""Every tutorial runs as it stands, and shows what it says it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.pages import ROOT, blocks, python

FOLDER = ROOT / "docs" / "tutorials"

# What each page leaves behind, looked at from outside.
LOOK = {
    "integration": """
assert adata.obsm["X_scVI"].shape == (700, 10)
assert mixing > 0.5, mixing
assert {"CD79A", "CD79B"} & set(found.index[:20]), found.index[:20]
""",
    "mapping": """
known = query.obs["bulk_labels"] != "CD19+ B"
assert (labels["best"][known] == query.obs["bulk_labels"].astype(str)[known]).mean() > 0.5
assert labels["best"].ne("CD19+ B").all()
old = model.get_latent_representation()
assert np.array_equal(mapped.get_latent_representation(reference), old)
""",
    "ambient": """
kept = adata[~b_cells, markers].layers["clean"].mean() / adata[~b_cells, markers].X.mean()
assert after < 0.5 * before and kept > 0.6, (before, after, kept)
""",
    "citeseq": """
means = present.groupby(adata.obs["type"]).mean()
assert means.loc["A", "CD-A"] > 0.9 and means.loc["B", "CD-B"] > 0.9, means
assert means.loc["B", "CD-A"] < 0.1 and means.loc["A", "CD-B"] < 0.1, means
assert (means.filter(like="iso") < 0.2).all(axis=None), means
""",
    "multimodal": """
assert expected.shape == (400, 200) and np.isfinite(expected.to_numpy()).all()
assert score > 0.55, score
""",
    "spatial": """
assert np.corrcoef(proportions.to_numpy().ravel(), truth.ravel())[0, 1] > 0.75
assert states.shape[0] == 100 and len(expression) == (proportions["A"] > 0.1).sum()
""",
    "checking": """
zeros = checks.genes[["zero_fraction", "zero_fraction_predicted"]]
assert abs(zeros.diff(axis=1).iloc[:, 1]).mean() < 0.1
assert np.isfinite(better)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("page", LOOK)
def test_the_page_runs_and_shows_what_it_says(page: str, tmp_path: Path) -> None:
    code = "\n".join(blocks((FOLDER / f"{page}.md").read_text(encoding="utf-8"), "python"))
    result = python(f"{code}\n{LOOK[page]}\nprint('looked')", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "looked"


def test_every_page_is_run_and_listed() -> None:
    pages = {path.stem for path in FOLDER.glob("*.md")} - {"README"}
    assert pages == set(LOOK)
    contents = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w+)\.md\)", contents)) == pages


def test_the_files_they_link_to_exist() -> None:
    for path in FOLDER.glob("*.md"):
        links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
        assert [link for link in links if not link.startswith("http") and not (FOLDER / link).exists()] == []
