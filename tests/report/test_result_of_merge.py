"""Which stored measurement is a merged checkpoint's."""

import json

import pytest

from lightning_merge.report.result_of_merge import result_of_merge


@pytest.mark.parametrize("folder", ["out", "seed7/3-networks/out", "merges/seed7/out"])
def test_folders_above_the_results_say_nothing_of_seed_and_size(tmp_path, folder):
    rows = [
        {"kind": "merge", "method": "Soup", "seed": seed, "pool_size": size, "accuracy": accuracy}
        for seed, size, accuracy in ((0, 2, 0.1), (1, 2, 0.2), (0, 4, 0.3), (1, 4, 0.4))
    ]
    out = tmp_path / folder
    merges = out / "merges" / "seed1" / "4-networks"
    merges.mkdir(parents=True)
    (out / "results.json").write_text(json.dumps({"measurements": rows}))
    assert result_of_merge(merges / "soup.ckpt")["measurement"] == rows[3]
    # Two numbers of ingredients have been merged with this seed.
    assert result_of_merge(merges.parent / "soup.ckpt") is None
