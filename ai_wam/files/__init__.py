"""Reading and writing files: atomic writes, text formats, arrays and weights without pickles."""
