"""Reports of an evaluation: text tables, an HTML page, the README's picture."""
