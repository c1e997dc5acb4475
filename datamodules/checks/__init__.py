"""Looking at recordings: what is broken, implausible or unseen."""
