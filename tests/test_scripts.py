"""The site's scripts: what is committed is what the pages say."""

from llm_literate import scripts


def test_scripts_and_pages_in_sync(root, lines):
    lines(scripts.stale(root / "nbs"))
