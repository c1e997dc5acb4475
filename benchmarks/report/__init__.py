"""What people read of an evaluation: text tables and a page of HTML."""
