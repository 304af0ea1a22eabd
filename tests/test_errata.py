"""The page of errata tells every erratum that the ledger has."""

import re

from llm_literate.ledger import records


def test_every_erratum_is_checked_on_its_page(pages, lines):
    page = next(page for page in pages if page.name == "Zf_errata")
    checked = {id for cell in page.cells for id in re.findall(r'check\("([^"]+)"', cell.code)}
    lines(f"nbs/Zf_errata.ipynb: does not check {record.id!r}, an erratum of the ledger; show it there"
          for record in records().values() if record.status == "erratum" and record.id not in checked)
