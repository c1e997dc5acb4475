"""What people read of an evaluation: text tables, a page of HTML, the README's picture."""
